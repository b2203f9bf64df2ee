"""Ways to start a program with the agent on board, without a word about it in an ini or in code."""
