"""What the relay costs beside other servers, the kernel alone, and itself at another size: `make bench`."""
