# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .clusters import count_clusters as count_clusters
from .clusters import require_clusters as require_clusters
from .explain import explain_annotated as explain_annotated
from .expression import express_markers as express_markers
from .metrics import agreement as agreement
from .metrics import compare as compare
from .metrics import describe_agreement as describe_agreement
from .quality import InputQuality as InputQuality
from .quality import examine as examine
from .records import best_labels as best_labels
from .records import count_answers as count_answers
from .records import count_unknown as count_unknown
from .records import describe_error_rate as describe_error_rate
from .records import describe_input as describe_input
from .records import describe_unknown as describe_unknown
