"""What experiments need and the lecture does not mention: data, models, options, the training loop, checkpoints, TensorBoard.

options.py     every number that can change a result             loop.py        train(): logs, checkpoints, signals, resume
pictures.py    patterns and bars, made here                      training.py    one step, one evaluation, the state of a run
digits.py      MNIST and its siblings, checked                   checkpoint.py  files that are whole or not there
models.py      small networks, ours or torch's                   folder.py      the run folder: lock, options.json, metrics.csv
order.py       which example comes when                          board.py       TensorBoard
group.py       one process or several                            figures.py     pictures of filters, mistakes, confusion
guards.py      NaN, infinity, clipping                           progress.py    a bar, or plain lines
signals.py     Ctrl-C and SIGTERM                                errors.py      one sentence for the user
trained.py     using and exporting what was trained              shards.py      local layers split over processes
photograph.py  pictures from anywhere, as MNIST draws its digits
study.py       an experiment that is no training run
"""
