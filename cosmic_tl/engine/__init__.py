"""Many edits scored on the same prompts, each pass from where it has to start to where nothing more is read.

The engine under every procedure that scores candidates by intervened passes. It is exact: what it spares is what nothing
reads, and what several passes have in common.

* Below its source layer an edit changes nothing: a pass resumes from the clean stream there. Source layers are worked
  through in order, so that one layer's clean stream is alive at a time.
* A pass stops after the last layer that is read, and in that block only the last token goes through the MLP.
* What is read below the source layer is the clean value: no pass.
* Edits at the same places share their input: they are batched, equally many rows for each.
* The tokens that all prompts begin with are run once per edit; prompts continue from their keys and values.
* Of a model with offloaded weights, all passes go through a block before the next one is read (`by_block`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
