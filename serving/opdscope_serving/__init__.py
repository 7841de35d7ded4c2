"""What the generator and the scorer both need in order to be servers."""
