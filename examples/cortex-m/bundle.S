/* The two files of a bundle, in flash as they are. The assembler is given the bundle's folder. */
  .section .rodata.bundle, "a"
  .balign 4
  .global edge_tables
edge_tables:
  .incbin "edge.tables"
  .global edge_tables_end
edge_tables_end:
  .balign 4
  .global edge_weights
edge_weights:
  .incbin "edge.weights"
  .global edge_weights_end
edge_weights_end:
