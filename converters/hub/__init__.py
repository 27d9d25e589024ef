"""The Hugging Face Hub: names of repositories, what is fetched of them, model cards."""
