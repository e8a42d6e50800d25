"""Small programs, each of which has one JIT compiler compile something, and prints how much was compiled as JSON."""
