"""int8 graphs: activation ranges, the quantised graphs, and the gate that judges them."""
