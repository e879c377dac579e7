// SPDX-License-Identifier: Apache-2.0
// The one place where latpar's version is written; the build system reads it from here.
#pragma once

#define LATPAR_VERSION_MAJOR 0
#define LATPAR_VERSION_MINOR 1
#define LATPAR_VERSION_PATCH 0
