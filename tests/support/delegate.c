// A TFLite delegate for tests, which misbehaves as its option `mode` says; after `after` inferences, if that is given.
//
// It is right about one kind of model only: one whose output is its input. That it computes by copying, at once.
// The structures are the runtime's public C interface (tensorflow/lite/core/c/common.h), as far as they are needed.

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { int size; int data[]; } IntArray;

typedef struct {
  int type;
  void *data;
  IntArray *dims;
  float scale;
  int32_t zero_point;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  void *delegate;
  int buffer_handle;
  bool stale, variable;
  int quantization_type;
  void *quantization;
  void *sparsity;
  const IntArray *dims_signature;
} Tensor;

typedef struct { IntArray *inputs, *outputs; } Node;

struct Context;

typedef struct {
  void *(*init)(struct Context *, const char *, size_t);
  void (*free)(struct Context *, void *);
  int (*prepare)(struct Context *, Node *);
  int (*invoke)(struct Context *, Node *);
  const char *(*profiling_string)(const struct Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *rest[8];
} Registration;

typedef struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(struct Context *, IntArray **);
  Tensor *tensors;
  void *impl;
  void *resize_tensor;
  void (*report_error)(struct Context *, const char *, ...);
  void *add_tensors;
  void *get_node_and_registration;
  int (*replace_nodes)(struct Context *, Registration, const IntArray *, void *);
} Context;

typedef struct {
  void *data;
  int (*prepare)(Context *, void *);
  void *copy_from, *copy_to, *free_handle;
  int64_t flags;
  void *builder;
} Delegate;

static char mode[64];
static long after, runs;

static bool is(const char *name) { return strcmp(mode, name) == 0; }

static int kernel_prepare(Context *context, Node *node) { return 0; }

static int kernel_invoke(Context *context, Node *node) {
  const Tensor *from = &context->tensors[node->inputs->data[0]];
  Tensor *to = &context->tensors[node->outputs->data[0]];
  // The model's input is the one that is as large as its output.
  for (int i = 0; i < node->inputs->size; i++)
    if (context->tensors[node->inputs->data[i]].bytes == to->bytes) from = &context->tensors[node->inputs->data[i]];
  memcpy(to->data, from->data, to->bytes);
  if (runs++ < after) return 0;
  if (is("wrong")) for (size_t i = 0; i < to->bytes; i++) ((uint8_t *)to->data)[i] ^= 0x3f & i;
  if (is("nan")) memset(to->data, 0xff, to->bytes);
  if (is("crash") || is("fork-crash")) raise(SIGSEGV);
  if (is("illegal")) raise(SIGILL);
  if (is("exit")) exit(0);
  if (is("hang")) for (;;) pause();
  if (is("slow")) usleep(400000);
  if (is("fail")) {
    context->report_error(context, "the device has gone");
    return 1;
  }
  if (is("noisy")) {
    printf("a delegate that talks\n");
    fflush(stdout);
    fprintf(stderr, "all the time\n");
  }
  return 0;
}

static int prepare(Context *context, void *delegate) {
  if (is("crash-prepare")) raise(SIGSEGV);
  if (is("hang-prepare")) for (;;) pause();
  IntArray *plan;
  if (context->get_execution_plan(context, &plan) != 0) return 1;
  if (is("nothing")) return 0;
  IntArray *nodes = malloc(sizeof(int) * (plan->size + 1));
  memcpy(nodes, plan, sizeof(int) * (plan->size + 1));
  Registration kernel = {.prepare = kernel_prepare, .invoke = kernel_invoke, .custom_name = "stub", .version = 1};
  int status = context->replace_nodes(context, kernel, nodes, delegate);
  free(nodes);
  return status;
}

static void ignored(int number) {}

static void flood(void) {
  char block[4096];
  memset(block, '.', sizeof block);
  block[sizeof block - 1] = '\n';
  for (int i = 0; i < 4096; i++) write(2, block, sizeof block);
}

void *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  for (size_t i = 0; i < count; i++) {
    if (strcmp(keys[i], "mode") == 0) snprintf(mode, sizeof mode, "%s", values[i]);
    if (strcmp(keys[i], "after") == 0) after = atol(values[i]);
  }
  if (is("refuse")) {
    report("the device is busy");
    return NULL;
  }
  if (is("flood")) flood();
  if ((is("fork") || is("fork-crash")) && fork() == 0) for (;;) pause();
  if (is("signals")) for (int number = 1; number < 32; number++) signal(number, ignored);
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->prepare = prepare;
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
