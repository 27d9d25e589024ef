"""Work with the Hugging Face Hub: names of repositories, downloads and model cards."""
