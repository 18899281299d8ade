"""How long a module and its parts take, wherever it runs."""
