"""How good are the pictures? Recognition by the network itself and by judges."""
