/* Trained merge models inside the library: the files of the folder weights/. */
#ifndef MERGE_SHIPPED_H
#define MERGE_SHIPPED_H

#include "merge/score_file.h"

typedef struct merge_file {
    const char *name;
    const unsigned char *data, *end;
} merge_file;

/* Ends with an entry whose name is NULL. Made by tools/embed.py. */
extern const merge_file merge_shipped[];

/* The file trained for the model with this digest, or NULL. */
const merge_file *merge_shipped_for(uint64_t digest);

#endif
