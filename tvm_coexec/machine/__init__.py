"""What the machine under us is: its cores, clocks, temperatures, and the software on it."""
