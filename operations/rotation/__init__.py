"""`make rotate`: new values for the generated secrets."""
