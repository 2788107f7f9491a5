"""Changes at single tokens, many on the same prompts: each pass begins at the changed token, on clean keys and values.

A change of what block `l` writes at one token leaves all earlier tokens and all lower blocks as they were. So only the tokens
from the changed one on are run, from block `l` on, with the keys and values that the clean pass left behind. Results are those of
whole passes, to rounding.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
