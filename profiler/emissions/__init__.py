"""CodeCarbon beside the meter, and how far the two agree."""
