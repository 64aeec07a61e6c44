"""Tools that make models faster or more accurate. The daemon loads none of them."""
