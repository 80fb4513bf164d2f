"""`python -m vlm_mhpo.cli`: the command under torchrun, which starts modules."""

from vlm_mhpo.cli import main

main()
