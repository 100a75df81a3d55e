"""From a trained student to an edge model: a timm folder, ONNX, int8, torch.export, ExecuTorch, and a card.

    config.py           settings of the command
    edge.py work.py     one finished run -> one export folder, whole or not at all; what its parts share
    finished.py         read a finished run and its images
    images.py           which images calibrate, which are held out, which measure; pictures batch by batch
    preprocessing.py    from a picture to the input, for phones; normalisation inside the graph
    timm_folder.py onnx_model.py program.py executorch_model.py     one format each
    parity.py           the same pictures through every format, compared
    quantise.py         post-training static quantisation; search.py: the settings that held-out images choose
    fake_quant.py qat.py    a short phase two with fake quantisation
    int8.py             both together: what is kept, and what it loses
    manifest.py card.py     export.json and the model card
    latency.py browser.py   parameters, memory, latency; a page that runs the model

Importing the package is light, so that a wrong flag fails at once.
"""
