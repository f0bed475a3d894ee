"""The sentences of the phantom reports: plain word lists, no logic.

Placeholders: {grade} severity word, {side} left or right, {lobe} e.g. "right upper lobe", {mm} whole millimetres, {ctr}
cardiothoracic ratio, {left}/{right} severity words of the two sides. Sentences start with a lower-case letter; the
grammar in `report.py` capitalises and ends them. Lists named *_OPEN leave the severity open on purpose.
"""

from __future__ import annotations

EFFUSION_ONE_SIDE = (
    "there is a {grade} {side} pleural effusion",
    "there is a {grade} {side}-sided pleural effusion",
    "{grade} {side} pleural effusion is present",
    "a {grade} pleural effusion is seen on the {side}",
    "{grade} layering {side} pleural effusion",
    "{grade} {side} pleural effusion",
)
EFFUSION_ONE_SIDE_OPEN = (
    "there is a {side} pleural effusion",
    "{side} pleural effusion is noted",
    "there is pleural fluid on the {side}",
)
EFFUSION_BOTH = (
    "there are {grade} bilateral pleural effusions",
    "there are {grade} pleural effusions seen",
    "there are {grade} pleural effusions",
    "{grade} bilateral pleural effusions are present",
    "{grade} pleural effusions on both sides",
    "bilateral {grade} pleural effusions",
)
EFFUSION_BOTH_OPEN = (
    "there are bilateral pleural effusions",
    "there are pleural effusions",
    "bilateral pleural effusions are seen",
)
EFFUSION_UNEQUAL = (
    "there is a {right} right and a {left} left pleural effusion",
    "{right} right and {left} left pleural effusions",
    "bilateral pleural effusions, {right} on the right and {left} on the left",
    "there are bilateral pleural effusions, {right} on the right and {left} on the left",
)
EFFUSION_COMPRESSION = (
    "there is adjacent compressive atelectasis",
    "associated compressive atelectasis of the underlying lung",
    "the adjacent lung is partly compressed",
)
EFFUSION_NONE = (
    "there is no pleural effusion",
    "no pleural effusion",
    "no pleural effusion or pneumothorax",
    "there is no pleural effusion or pneumothorax",
    "no effusion is seen",
    "the pleural spaces are clear",
    "there is no evidence of pleural effusion",
    "no pleural effusion is identified on either side",
)

CARDIOMEGALY = (
    "there is {grade} cardiomegaly",
    "{grade} cardiomegaly",
    "{grade} cardiomegaly is present",
    "the heart is {grade}ly enlarged",
    "there is {grade} enlargement of the heart",
    "{grade} cardiac enlargement",
)
CARDIOMEGALY_OPEN = (
    "there is cardiomegaly",
    "cardiomegaly",
    "the heart is enlarged",
    "the heart is enlarged with a cardiothoracic ratio of {ctr}",
    "cardiac silhouette is enlarged",
)
CARDIOMEGALY_NONE = (
    "heart size is normal",
    "there is no cardiomegaly",
    "the heart is normal in size",
    "the heart is not enlarged",
    "normal heart size without pericardial effusion",
    "heart size is within normal limits",
    "no cardiomegaly",
    "cardiac size is normal",
)

EMPHYSEMA = (
    "there is {grade} bullous emphysema",
    "{grade} bullous emphysema",
    "{grade} emphysema with bullae",
    "there is {grade} emphysema with bullae in both lungs",
    "{grade} emphysematous changes with bullae are seen",
    "there is {grade} emphysema with bullous changes",
)
EMPHYSEMA_OPEN = (
    "there is bullous emphysema",
    "there are bullae in both lungs",
    "emphysema with bullae",
    "bullous emphysema is seen",
    "bullae are present",
)
EMPHYSEMA_NONE = (
    "there is no emphysema",
    "no bullae",
    "there are no bullae",
    "no emphysema or bullae",
    "no emphysematous change is seen",
    "there is no bullous emphysema",
    "no evidence of emphysema",
)

CONSOLIDATION = (
    "there is {grade} consolidation in the {lobe}",
    "{grade} consolidation in the {lobe}",
    "{grade} {lobe} consolidation",
    "{grade} airspace consolidation is seen in the {lobe}",
    "the {lobe} shows {grade} consolidation",
)
CONSOLIDATION_OPEN = (
    "there is consolidation in the {lobe}",
    "{lobe} consolidation",
    "airspace consolidation in the {lobe} with air bronchograms",
)
GROUND_GLASS = (
    "there is {grade} ground-glass opacity in the {lobe}",
    "{grade} ground-glass opacities in the {lobe}",
    "{grade} ground glass opacification of the {lobe}",
    "{grade} {lobe} ground-glass opacity",
    "the {lobe} shows {grade} ground-glass opacity",
)
GROUND_GLASS_OPEN = (
    "there is ground-glass opacity in the {lobe}",
    "{lobe} ground-glass opacity",
    "ground-glass opacities are seen in the {lobe}",
)
OPACITY_NONE = (
    "there is no consolidation or ground-glass opacity",
    "no focal consolidation or ground-glass opacity",
    "no airspace opacity",
    "no focal airspace disease",
    "there is no focal lung opacity",
)
CONSOLIDATION_NONE = ("there is no consolidation", "no focal consolidation", "no lobar consolidation is seen")
GROUND_GLASS_NONE = ("there is no ground-glass opacity", "no ground-glass opacities", "no ground glass opacification")

NODULE = (
    "there is a {mm} mm nodule in the {lobe}",
    "{mm} mm {lobe} nodule",
    "{mm} mm solid nodule in the {lobe}",
    "a pulmonary nodule in the {lobe} measures {mm} mm",
    "there is a {grade} nodule in the {lobe} measuring {mm} mm",
)
NODULE_OPEN = (
    "there is a {grade} nodule in the {lobe}",
    "{grade} {lobe} nodule",
    "{grade} pulmonary nodule in the {lobe}",
)
MASS = (
    "there is a {mm} mm nodular mass in the {lobe}",
    "{mm} mm {lobe} mass or large nodule",
)
NODULE_NONE = (
    "no suspicious pulmonary nodule",
    "there is no suspicious nodule or mass",
    "no suspicious lung nodules are seen",
)

LUNGS_CLEAR = ("the lungs are clear", "the lungs are well aerated and clear", "both lungs are clear")

NORMAL = (
    "no acute cardiopulmonary abnormality",
    "normal chest CT",
    "no acute abnormality in the chest",
    "no significant abnormality",
    "unremarkable CT of the chest",
    "no evidence of acute disease",
)

AIRWAYS = (
    "the trachea and main bronchi are patent",
    "the central airways are patent",
    "the tracheobronchial tree is patent",
    "airways are clear of debris",
)
MEDIASTINUM = (
    "no enlarged mediastinal or hilar lymph nodes",
    "there is no mediastinal lymphadenopathy",
    "mediastinal contours are unremarkable",
    "the thoracic aorta is normal in caliber",
    "there is no pericardial effusion",
    "no pericardial effusion is seen",
)
INCIDENTAL = (
    "degenerative changes of the thoracic spine",
    "mild degenerative changes are seen in the spine",
    "there are multilevel osteophytes in the thoracic spine",
    "no suspicious osseous lesion",
    "osseous structures are intact",
    "old healed rib fracture",
    "coronary artery calcifications are present",
    "mild coronary calcification",
    "atherosclerotic calcification of the aorta",
    "small hiatal hernia",
    "calcified granuloma in the spleen",
    "calcified hilar lymph nodes from prior granulomatous disease",
    "simple cyst in the liver",
    "the imaged upper abdomen is unremarkable",
    "prior cholecystectomy",
    "the adrenal glands are normal",
    "small hypodense thyroid lesion",
    "the chest wall is unremarkable",
)
GRANULOMA = (
    "calcified granuloma in the {lobe}",
    "there is a punctate calcified granuloma in the {lobe}",
)
