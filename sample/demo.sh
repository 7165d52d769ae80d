#!/bin/sh
# The main job on the sample, as three commands that can be copied. Usage: sh sample/demo.sh [python]
set -e
cd "$(dirname "$0")/.."
PYTHON=${1:-python}
run() { printf '\n$ '; printf '%s ' "$@"; printf '\n'; "$@"; }

run "$PYTHON" Patch_extraction_v2.py single --image sample/scene.tif --label sample/training_polygons.geojson \
    --label_field name --label_map water=0 crop=1 tree=2 developed=3 \
    --grid sample/grid.gpkg --split_column split --patch_size 128 --output demo/patches --overwrite
run "$PYTHON" main_v2.py --model unet --encoder_name resnet18 --no_pretrained --classes 4 \
    --dataset_root demo/patches --epochs 60 --patience 60 --batch_size 4 --dropout_rate 0.1 --scheduler_type one_cycle --learning_rate 1e-3 \
    --save_dir demo/model --overwrite
run "$PYTHON" Predict_large_image_v2.py --model demo/model/unet_final.pth --input sample/scene.tif \
    --output demo/map.tif --save_confidence --quicklook --overwrite

printf '\nDone. Open demo/map_quicklook.png to see the scene beside its map;\n'
printf 'demo/map.tif and demo/map_confidence.tif open in QGIS, demo/model/ holds the log and the curves.\n'
