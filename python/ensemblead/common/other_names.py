"""What names of anomalib and patchcore-inspection are called here: hints for Python and the command line.

The names are not taken: two names for one thing would have to be kept for ever. They are answered.
Each table has a part for either tool. Those of anomalib are of its version 2.7, those of patchcore-inspection
of its `bin/run_patchcore.py`. Capitals do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ensemblead.common.validation import did_you_mean, near_names

# Names of classes and functions -> how to get the same here.
NAMES_OF = {
    "anomalib": {
        "Patchcore": "ead.PatchCore",
        "Padim": "ead.PaDiM",
        "EfficientAd": "ead.EfficientAD",
        "Fastflow": "ead.FastFlow",
        "Draem": "ead.DRAEM",
        "AnomalyDINO": 'ead.create({"preset": "anomaly_dino"})',
        "Rad": 'ead.create({"preset": "rad"})',
        "SuperADD": 'ead.create({"preset": "superadd"})',
        "Visa": "ead.VisA",
        "MVTec": "ead.MVTecAD",
        "Engine": "the detector itself: detector.fit(images), detector.predict(images); "
        "ead.evaluate(detector, dataset)",
        "get_model": 'ead.create({"type": "PatchCore"})',
        "PredictDataset": "detector.predict(FOLDER)",
        "ImageBatch": "ead.Predictions",
        "PreProcessor": "resize= and image_size= of a detector",
        "PostProcessor": "detector.calibrate(images), which sets the threshold",
        "F1AdaptiveThreshold": "detector.calibrate(images), which takes the threshold from good images alone",
        "Evaluator": "ead.evaluate(detector, dataset)",
        "AUROC": "ead.auroc",
        "AUPRO": "ead.aupro",
        "Tiler": "ead.TiledEnsemble",
        "TilerConfigurationCallback": "ead.TiledEnsemble",
        "TimmFeatureExtractor": "ead.FeatureExtractor",
        "KCenterGreedy": "ead.select_coreset",
        "ExportType": "detector.export(path, format=...)",
        "TorchInferencer": "ead.load(MODEL).predict(images)",
        "OpenVINOInferencer": "ead.load_exported(FOLDER)",
    },
    "patchcore-inspection": {
        "MVTecDataset": "ead.MVTecAD",
        "NetworkFeatureAggregator": "ead.FeatureExtractor",
        "GreedyCoresetSampler": "ead.select_coreset",
        "ApproximateGreedyCoresetSampler": "ead.select_coreset",
        "NearestNeighbourScorer": "ead.MemoryBank",
        "FaissNN": "ead.MemoryBank, which searches exactly, or by FAISS with index=",
    },
}
# Methods of anomalib that are not here.
MISSING = ["AiVad", "AnomalyVFM", "Cfa", "Cflow", "CFM", "Csflow", "Dfkde", "Dfm", "Dinomaly", "Dsr"]
MISSING += ["FoundAD", "Fre", "Fuvas", "Ganomaly", "GeneralAD", "Glass", "InpFormer", "L2BT", "MHPatchcore"]
MISSING += ["Patchflow", "Stfpm", "Supersimplenet", "Uflow", "UniNet", "VlmAd", "WinClip"]

# Parameters and options -> the parameter here.
PARAMETERS_OF = {
    "anomalib": {
        "coreset_sampling_ratio": "coreset_fraction",
        "sampling_ratio": "coreset_fraction",
        "memory_bank_size": "coreset_size",
        "encoder_name": "backbone",
        "masking": "foreground",
        "pos_radius": "position_radius",
        "n_features": "num_dimensions",
        "model_size": "size",
        "imagenet_dir": "penalty_images",
        "dtd_dir": "textures",
        "anomaly_source_path": "textures",
        "lr": "learning_rate",
        "max_steps": "steps",
        "input_size": "resize",
        "train_batch_size": "batch_size",
        "eval_batch_size": "batch_size",
        "accelerator": "device",
    },
    "patchcore-inspection": {
        "backbone_name": "backbone",
        "backbone_names": "backbone",
        "layers_to_extract_from": "layers",
        "pretrain_embed_dimension": "pretrain_dim",
        "target_embed_dimension": "target_dim",
        "patchsize": "patch_size",
        "patchscore": "score",
        "anomaly_scorer_num_nn": "num_neighbors",
        "anomaly_score_num_nn": "num_neighbors",
        "num_nn": "num_neighbors",
        "percentage": "coreset_fraction",
        "featuresampler": "coreset_fraction",
        "nn_method": "index",
        "imagesize": "image_size",
        "input_shape": "image_size",
        "gpu": "device",
    },
}
# Those that are no parameter here -> what to do instead.
ADVICE_OF = {
    "anomalib": {
        "pre_trained": "the weights are published ones; weights=None (--weights none) takes random ones",
        "pre_processor": "resize= and image_size= say how images are prepared",
        "post_processor": "calibrate(images) sets the threshold, on the command line ensemblead calibrate",
        "evaluator": "ead.evaluate(detector, dataset) measures, on the command line ensemblead evaluate",
        "visualizer": "ensemblead predict --out FOLDER draws heat maps, Report.to_html a page",
        "max_epochs": "training is counted in steps",
        "ckpt_path": "the folder of a model comes first: ensemblead predict MODEL IMAGES --out FOLDER",
        "model": "the folder of a model comes first: ensemblead predict MODEL IMAGES --out FOLDER",
        "export_type": "ensemblead export --format openvino, or onnx",
        "data": "images are a folder: ensemblead fit FOLDER --model MODEL",
        "normal_dir": "normal= of ead.Folder; a detector takes the folder: detector.fit(FOLDER)",
        "abnormal_dir": "anomalous= of ead.Folder",
        "normal_test_dir": "test_normal= of ead.Folder",
        "mask_dir": "masks= of ead.Folder",
    },
    "patchcore-inspection": {
        "faiss_on_gpu": 'the search runs where the detector does: device="cuda" (--device cuda)',
        "faiss_num_workers": "the environment variable OMP_NUM_THREADS says how many threads run",
        "num_workers": "the environment variable OMP_NUM_THREADS says how many threads run",
        "patchstride": "every position of the feature maps is a patch",
        "patchoverlap": "every position of the feature maps is a patch",
        "preprocessing": "channels are pooled by their mean, as preprocessing=mean does",
        "train_val_split": "every image of the folder is learned; ensemblead calibrate takes others",
        "save_segmentation_images": "ensemblead predict --out FOLDER writes heat maps",
        "save_patchcore_model": "ensemblead fit writes the model to the folder of --model",
        "log_group": "ensemblead evaluate writes the results to the folder of --out",
        "log_project": "ensemblead evaluate writes the results to the folder of --out",
        "subdatasets": "ensemblead evaluate takes the folder of one category, or of several",
    },
}

# Options of another command line. In Python and in configuration files they are words like others.
_OPTIONS_ALONE = frozenset(("ckpt_path", "data", "export_type", "model"))

# Commands -> the command here.
COMMANDS_OF = {
    "anomalib": {
        "train": "ensemblead fit",
        "test": "ensemblead evaluate",
        "validate": "ensemblead evaluate",
    },
    "patchcore-inspection": {
        "patch_core": "ensemblead fit",
        "sampler": "ensemblead fit --coreset-fraction",
        "dataset": "ensemblead fit FOLDER",
    },
}


def _joined(tables: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {name: here for table in tables.values() for name, here in table.items()}


NAMES, PARAMETERS = _joined(NAMES_OF), _joined(PARAMETERS_OF)
ADVICE, COMMANDS = _joined(ADVICE_OF), _joined(COMMANDS_OF)


def name_hint(name: str, known: Iterable[str]) -> str | None:
    """What a name that is not in `known` is called here, or the near ones; None where nothing is like it.

    >>> name_hint("Patchcore", ["PatchCore", "PaDiM"])
    'here it is ead.PatchCore'
    """
    folded = name.casefold()
    for other, here in NAMES.items():
        if other.casefold() == folded:
            return f"here it is {here}"
    if folded in map(str.casefold, MISSING):
        return "that method of anomalib is not here; examples/mean_colour.py shows how a method is added"
    near = near_names(name, known)
    return f"did you mean {' or '.join(near)}?" if near else None


def parameter_hint(name: object, known: Collection[str]) -> str:
    """What a parameter that is not in `known` is called here, or the near ones, or all of them.

    >>> parameter_hint("num_nn", ["num_neighbors", "seed"])
    'here it is num_neighbors'
    """
    here = PARAMETERS.get(str(name))
    if here in known:
        return f"here it is {here}"
    if here is not None:
        return f"here it is {here}, which is none of these: {', '.join(known)}"
    advice = None if name in _OPTIONS_ALONE else ADVICE.get(str(name))
    return advice or did_you_mean(name, known)


def option_hint(option: str, options: Collection[str]) -> str | None:
    """What an option of another command line is here, where a command has `options`; None if it is of none.

    >>> option_hint("--patchsize", ["--patch-size", "--set"])
    'here it is --patch-size'
    """
    # anomalib's command line has groups: --model.backbone, --data.category.
    group, _, name = re.sub("^-+", "", option).replace("-", "_").rpartition(".")
    known = PARAMETERS.get(name)
    here = known or (name if group == "model" and name not in ADVICE else None)
    if here is None:
        return ADVICE.get(name) or ADVICE.get(group)
    flag = f"--{here.replace('_', '-')}"
    for own in (flag, flag.removesuffix("s")):  # --layer is repeated
        if own in options:
            return f"here it is {own}"
    if known is None:
        return None
    if "--set" in options:
        return f"here it is --set {here}=VALUE"
    return f"here it is {here}, a parameter of ensemblead fit"


def command_hint(command: str) -> str | None:
    """Which command here does what one of another tool does; None for an unknown one.

    >>> command_hint("train")
    'here it is ensemblead fit'
    """
    return f"here it is {COMMANDS[command]}" if command in COMMANDS else None
