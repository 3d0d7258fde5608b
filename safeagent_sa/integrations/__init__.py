"""One module and one extra for each framework; no other part of the library imports them."""
