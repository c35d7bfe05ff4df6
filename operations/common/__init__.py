"""What every command uses: the checkout, the stack, the terminal."""
