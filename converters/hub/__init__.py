"""The Hugging Face Hub: names of repositories, downloads from them, and model cards."""
