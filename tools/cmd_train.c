#include "input.h"
#include "output.h"
#include "run.h"
#include "tool.h"
#include "watch.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int open_trainer(train_run *run)
{
    const train_options *o = run->o;
    train_tell_options(run);
    const dcm_train_params params = {.tokens = (uint32_t)o->tokens,
                                     .sinks = o->sinks ? (int32_t)o->sinks : -1,
                                     .arch = (dcm_train_arch)o->arch,
                                     .mode = (dcm_train_mode)o->mode,
                                     .hidden = (uint32_t)o->hidden,
                                     .depth = (uint32_t)o->depth,
                                     .seed = (uint64_t)o->seed,
                                     .from = o->from,
                                     .kl = o->kl > 0 ? (float)o->kl : -1,
                                     .il = (float)o->il,
                                     .magnitude = (float)o->magnitude,
                                     .boundary = (float)o->boundary,
                                     .positions = (uint32_t)o->positions,
                                     .again = o->again,
                                     .options = run->options};
    const dcm_status status = dcm_trainer_open(&run->trainer, run->r.model, &params);
    if (status != DCM_OK)
        return tool_fail_library(status);
    return o->resume ? train_resume(run) : 0;
}

static int open_room(train_run *run)
{
    const train_options *o = run->o;
    const size_t windows = watch_sequences(run) * o->groups.count;
    run->ids = malloc((size_t)o->tokens * sizeof *run->ids);
    run->window = malloc((windows + 1) * sizeof *run->window);
    if (!run->ids || !run->window)
        return tool_fail(DCM_ERR_MEMORY, "no room for a sequence");
    for (size_t i = 0; i < windows; i++)
        run->window[i] = NAN;
    const char *name = o->checkpoint ? o->checkpoint : o->out, *end = o->checkpoint ? "" : ".checkpoint";
    if ((size_t)snprintf(run->checkpoint, sizeof run->checkpoint, "%s%s", name, end) >= sizeof run->checkpoint)
        return tool_fail(DCM_ERR_USAGE, "the checkpoint's path is too long");
    const output_name outputs[] = {
        {"-o", o->out}, {"--checkpoint", run->checkpoint}, {"--csv", o->csv}, {"--plot", o->plot}};
    const int code = output_check_apart(outputs, sizeof outputs / sizeof *outputs);
    return code ? code : output_check(run->checkpoint);
}

/* Options of the net that would say nothing. */
static int check_net(const train_options *o, const args *a)
{
    const bool hidden = args_seen(a, "hidden"), depth = args_seen(a, "depth");
    if (o->from && o->resume)
        return tool_fail(DCM_ERR_USAGE, "--from and --resume exclude each other");
    if (o->from && (hidden || depth))
        return tool_fail(DCM_ERR_USAGE, "--%s is of new weights: those of --from have their shape",
                         hidden ? "hidden" : "depth");
    if (depth && o->arch == DCM_TRAIN_SCORE)
        return tool_fail(DCM_ERR_USAGE, "--depth is of --merge-arch gate and direct");
    if (hidden && o->arch != DCM_TRAIN_SCORE)
        return tool_fail(DCM_ERR_USAGE, "--hidden is of --merge-arch score");
    return 0;
}

static int check_options(const train_options *o, const args *a)
{
    int64_t longest = 0;
    for (size_t i = 0; i < o->groups.count; i++)
        longest = o->groups.item[i] > longest ? o->groups.item[i] : longest;
    if (o->tokens <= 2 * longest + o->sinks)
        return tool_fail(DCM_ERR_USAGE, "sequences of %" PRId64 " tokens are too short for -L %" PRId64
                                        ": more than %" PRId64 " are needed",
                         o->tokens, longest, 2 * longest + o->sinks);
    if (o->plot && !o->csv)
        return tool_fail(DCM_ERR_USAGE, "--plot draws what --csv has: give both");
    if (!(o->kl > 0 || o->il > 0))
        return tool_fail(DCM_ERR_USAGE, "--kl 0 without --il leaves nothing to learn");
    if (!(o->rate > 0))
        return tool_fail(DCM_ERR_USAGE, "--rate 0 learns nothing");
    int code = check_net(o, a);
    if (code == 0)
        code = output_check(o->out);
    return code || !o->plot ? code : output_check(o->csv); /* which is read again */
}

static void add_options(args *a, train_options *o)
{
    const arg_option files[] = {
        {"text", 'f', ARG_TEXTS, &o->texts, "PATH",
         "A text, or a folder of texts, to train on; several -f have equal shares whatever their sizes.",
         .required = true},
        {"held-out", 0, ARG_TEXTS, &o->held, "PATH",
         "Texts to test on, never trained on: a sequence of each PATH, of a folder's texts one too."},
        {"output", 'o', ARG_TEXT, &o->out, "MERGE.safetensors",
         "The merge model, for --merge: the best of the tests, or the last without --held-out.", .required = true},
        {"checkpoint", 0, ARG_TEXT, &o->checkpoint, "FILE",
         "Where training can be resumed from; by default OUTPUT.checkpoint."},
        {"resume", 0, ARG_TEXT, &o->resume, "FILE",
         "Go on from a checkpoint, with the same options; only --checkpoint, --csv, --plot, --save-every, --again and "
         "the device's may differ. After --from, give the --hidden or --depth of its weights."},
        {"from", 0, ARG_TEXT, &o->from, "FILE", "Begin with a merge file instead of new weights."},
        {"csv", 0, ARG_TEXT, &o->csv, "FILE", "One row a step."},
        {"plot", 0, ARG_TEXT, &o->plot, "FILE.svg", "Draw the CSV's losses and tests at the end."},
    };
    const arg_option net[] = {
        {"merge-arch", 0, ARG_CHOICE, &o->arch, .choices = "score|gate|direct",
         .help = "A scorer of each unit, or the paper's MLP of both with either of its heads."},
        {"hidden", 0, ARG_INT, &o->hidden, "N", "Hidden units of each of a scorer's networks, a multiple of 16.", 16,
         128},
        {"depth", 0, ARG_INT, &o->depth, "N", "Linear maps of the MLP before its head, a multiple of 3; else 9.", 3,
         192},
        {"seed", 0, ARG_INT, &o->seed, "N", "Of weights, places and positions.", 0, INT64_MAX, .show_zero = true},
    };
    const arg_option steps[] = {
        {"group", 'L', ARG_INTS, &o->groups, "N,...", "Group lengths, taken in turn; a text stays for all of them.",
         DCM_GROUP_MIN, DCM_GROUP_MAX, .power_of_two = true},
        {"mode", 0, ARG_CHOICE, &o->mode, .choices = "tai|chunked",
         .help = "Merge by inference's schedule, or pairwise once after each chunk of L tokens; tests use the first."},
        {"tokens", 'n', ARG_INT, &o->tokens, "N", "Tokens of a sequence.", 8, 1 << 20},
        {"steps", 0, ARG_INT, &o->steps, "N", "Updates in all.", 1, INT64_C(1) << 40},
        {"sequences", 0, ARG_INT, &o->sequences, "N", "Passes (a text, a group length) of a step.", 1, 1 << 20},
        {"rate", 0, ARG_REAL, &o->rate, "R", "Highest learning rate.", 0, 1},
        {"warmup", 0, ARG_INT, &o->warmup, "N", "Steps until it is reached; then it falls by a cosine.", 0,
         INT64_C(1) << 40, .show_zero = true},
        {"sinks", 0, ARG_INT, &o->sinks, "S", "First tokens that are never merged.", 0, 1 << 20, .show_zero = true},
        {"save-every", 0, ARG_INT, &o->save_every, "N", "Steps between checkpoints.", 1, INT64_C(1) << 40},
        {"test-every", 0, ARG_INT, &o->test_every, "N",
         "Steps between tests; of training texts, to notice one that goes wrong, where none are held out.", 1,
         INT64_C(1) << 40},
        {"again", 0, ARG_FLAG, &o->again, NULL,
         "Run layers a second time on the way back instead of keeping their activations: less memory."},
    };
    const arg_option losses[] = {
        {"kl", 0, ARG_REAL, &o->kl, "W", "Weight of KL(full || compressed), over its running mean.", 0, 1000,
         .show_zero = true},
        {"positions", 0, ARG_INT, &o->positions, "N", "Predictions compared in a sequence.", 1, 1 << 20},
        {"il", 0, ARG_REAL, &o->il, "W", "Weight of L_IL, the squared distance of attention's outputs.", 0, 1000},
        {"magnitude", 0, ARG_REAL, &o->magnitude, "W", "Weight of merged keys' change of length; a scorer's.", 0, 1000},
        {"boundary", 0, ARG_REAL, &o->boundary, "W", "Weight of BSD, the jump of attention between levels.", 0, 1000},
    };
    input_add_model(a, &o->model);
    args_add(a, "Files", files, sizeof files / sizeof *files);
    args_add(a, "Merge model", net, sizeof net / sizeof *net);
    args_add(a, "Steps", steps, sizeof steps / sizeof *steps);
    args_add(a, "Loss", losses, sizeof losses / sizeof *losses);
    options_add_device(a, &o->device);
    options_add_verbosity(a, &o->words);
}

static int open_all(train_run *run)
{
    const train_options *o = run->o;
    int code = runtime_open(&run->r, &o->device, o->model);
    const size_t needed = (size_t)o->tokens;
    if (code == 0)
        code = corpus_open(&run->texts, run->r.tokenizer, &o->texts, needed);
    if (code == 0)
        code = corpus_open(&run->held, run->r.tokenizer, &o->held, needed);
    if (code == 0)
        code = corpus_check_apart(&run->texts, &run->held);
    if (code == 0)
        code = open_room(run);
    if (code == 0)
        code = open_trainer(run);
    if (code == 0 && o->csv)
        code = journal_open(&run->journal, o->csv, dcm_trainer_steps(run->trainer));
    return code;
}

int cmd_train(int argc, char **argv)
{
    train_options o = {.groups = {{64, 128, 256}, 3},
                       .tokens = 2048,
                       .steps = 300,
                       .sequences = 1,
                       .rate = 5e-4,
                       .warmup = 10,
                       .hidden = 32,
                       .sinks = DCM_DEFAULT_SINKS,
                       .positions = 512,
                       .save_every = 20,
                       .test_every = 50,
                       .kl = 1};
    args a = {.usage = "-m MODEL -f PATH [-f PATH...] -o MERGE.safetensors [options]",
              .about = "Train a merge model: the frozen model's predictions with the full cache are taught to the "
                       "compressed cache, by the very forward pass of inference."};
    train_run run = {.o = &o};
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = options_apply_verbosity(&o.words);
    if (code == 0)
        code = check_options(&o, &a);
    if (code == 0)
        code = open_all(&run);
    if (code == 0)
        code = train_loop(&run);
    if (o.plot && run.journal.out) {
        const int drawn = journal_plot(o.csv, o.plot);
        code = code ? code : drawn;
    }
    journal_close(&run.journal);
    dcm_trainer_close(&run.trainer);
    corpus_close(&run.texts);
    corpus_close(&run.held);
    free(run.ids);
    free(run.window);
    runtime_close(&run.r);
    return code;
}
