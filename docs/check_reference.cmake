# SPDX-License-Identifier: Apache-2.0
# Prints what Doxygen warned of in LOG, and which links of the pages in HTML lead nowhere; with AS_ERRORS
# it fails if there is anything. A type without a comment counts; a function or a variable without one does
# not: its name may say it all.
cmake_minimum_required(VERSION 3.22)

file(STRINGS ${LOG} found)
list(FILTER found EXCLUDE REGEX
     ": warning: Member .* \\((function|variable|typedef|friend|macro definition)\\) of .* is not documented\\.$")

file(GLOB pages ${HTML}/index.html ${HTML}/md_*.html)
foreach(page IN LISTS pages)
    file(READ ${page} text)
    string(REGEX MATCHALL "href=\"[^\":#]+[\"#]" links "${text}")
    foreach(link IN LISTS links)
        string(REGEX REPLACE "href=\"|[\"#]$" "" link "${link}")
        if(NOT EXISTS ${HTML}/${link})
            list(APPEND found "${page}: warning: the link to ${link} leads nowhere")
        endif()
    endforeach()
endforeach()

list(REMOVE_DUPLICATES found)
if(found)
    list(JOIN found "\n" text)
    message(NOTICE "${text}")
    if(AS_ERRORS)
        message(FATAL_ERROR "the reference has warnings, and LATPAR_WARNINGS_AS_ERRORS is on")
    endif()
endif()
