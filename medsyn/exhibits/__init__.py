"""Every table and figure: what it is made from, how it is made, what is said about it. One module per exhibit."""
