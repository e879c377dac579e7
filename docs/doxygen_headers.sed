# SPDX-License-Identifier: Apache-2.0
# What Doxygen reads in place of a header; line numbers stay as they are.

# Names are written without the version that the inline namespace gives them.
s/::inline v0//

# The sentence of purpose under the SPDX line is the documentation of the file.
1d
2s~^// \(.*\)~/// @file\n/// \1~
3,/^#pragma/s~^// ~/// ~

# The labels of doc comments become headed paragraphs.
s~^\( *///\) \(Ranks\|Stream\|Memory\|Errors\|Source\|Example\|Matching\): ~\1 @labelled{\2} ~
