#pragma once
/* Plots of the report: inline SVG, sizes in its own units, colours by method. */
#include "client/ctl/ctl_eval.h"

/* The colour of the method that a variant belongs to; the same for all its ratios. */
const char *eval_colour(const struct eval_variants *, size_t variant);

/* A measure over the share of tokens that is kept, with intervals; methods that keep everything are dashed lines. */
void eval_plot(struct eval_results *, const char *set, enum eval_measure, FILE *);

/* Lines and names of all methods. */
void eval_legend(const struct eval_variants *, FILE *);

/* Text with what HTML reads otherwise replaced. */
void eval_put_html(FILE *, const char *text);
