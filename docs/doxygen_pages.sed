# SPDX-License-Identifier: Apache-2.0
# What Doxygen reads in place of Markdown.

# Folders, programs and data have no page here; pictures lie beside the pages.
s~\[\([^]]*\)\]([^):]*\(/\|\.[ch]pp\|\.cu\|\.py\|\.sh\|\.json\|\.txt\|LICENSE\))~\1~g
s~(\(\.\./\)*[^():]*/\([^():/]*\.png\))~(\2)~g
