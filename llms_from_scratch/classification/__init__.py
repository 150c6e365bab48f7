"""Experiments with classifiers: labelled texts, models of several kinds, one way to train them.

``texts`` reads and checks tables and makes batches, ``models`` turns a language model into a
classifier, ``bert`` does so with models of ``transformers``, ``experiment`` trains and measures,
``explain`` says which tokens mattered, ``figures`` draws what came out.
"""
