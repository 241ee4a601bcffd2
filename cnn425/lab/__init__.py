"""What experiments need and the lecture does not mention: data, models, options, the training loop, checkpoints, TensorBoard, pages.

options.py     every number that can change a result             loop.py          train(): logs, checkpoints, signals, resume
pictures.py    patterns and bars, made here                      training.py      one step, one evaluation, the state of a run
digits.py      MNIST and its siblings, checked                   checkpoint.py    files that are whole or not there
photograph.py  pictures from anywhere, as MNIST draws its digits folder.py        the run folder: lock, options.json, metrics.csv
models.py      small networks, ours or torch's                   board.py         TensorBoard
order.py       which example comes when                          figures.py       pictures of filters, mistakes, confusion
group.py       one process or several                            progress.py      a bar, or plain lines
meeting.py     where the processes of one start meet             errors.py        one sentence for the user
guards.py      NaN, infinity, clipping                           study.py         an experiment that is no training run
signals.py     Ctrl-C and SIGTERM                                seeds.py         several runs: their mean and spread
trained.py     using and exporting what was trained              shards.py        local layers split over processes
explorer.py    every number of a network on one page             side_by_side.py  two networks on the same images
nodes.py       a network as nodes that a page can compute        expressions.py   a function typed as text
pages/         self-contained HTML: scripts and data inside
"""
