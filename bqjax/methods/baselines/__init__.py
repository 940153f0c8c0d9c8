"""Methods of other papers, in the same words: the baselines that the library's own methods are measured against."""
