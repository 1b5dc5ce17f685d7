"""One small file for each library that trains sparse dictionaries; `worker.py` runs one as a process of its own.

A library's module has PACKAGES, whose versions the header lists, and CODES, the code activations it has, each with
the amounts of sparsity that a frontier tries: k, or coefficients of its penalty. CANNOT says why it lacks another, NOTE
what is done differently.

    Fit(asked, x)               about to train on batches like x, float32 of mean norm √D
    fit.step(x)                 one step
    fit.encode(x) -> h          the code in use, not in training
    fit.decode(h) -> x̂
    fit.dictionary() -> (K, D)
    fit.numbers()               how many numbers it learns

Learning rates rise over the first 5 % of the steps and fall to zero over the last 20 %, penalties rise over the first
5 %, by each library's own schedules where it has them; what these do not touch is each library's default.
"""
