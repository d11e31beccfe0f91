"""Model families behind one protocol, and the pieces they share."""
