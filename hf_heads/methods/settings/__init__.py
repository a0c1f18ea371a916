"""The settings of the built-in methods: what commands, recipes and configs say of them."""
