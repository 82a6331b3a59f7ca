/* The edge half in C: pixels to feature files, and feature files to symbols.
 *
 * What it needs of a bundle are two files, edge.tables and edge.weights (docs/BUNDLE.md, sections 10
 * and 11). What it writes is what docs/FORMAT.md specifies, byte for byte what the Python package
 * writes with its engine `native`, on every processor.
 *
 *   edgecloud_bundle *bundle;
 *   edgecloud_encoder *encoder;
 *   edgecloud_error error;
 *   const uint8_t *file;
 *   size_t size;
 *   if (edgecloud_bundle_open("bundles/ours_n4", &bundle, &error) ||
 *       edgecloud_encoder_new(bundle, NULL, &encoder, &error) ||
 *       edgecloud_encode(encoder, pixels, 224, 224, 0, &file, &size, &error))
 *     fprintf(stderr, "%s\n", error.text);
 *
 * Rules for all functions:
 *   - A function that can fail returns a status: EDGECLOUD_OK, which is 0, or what went wrong.
 *     Then `error`, unless it is NULL, has a text for users, and no other output is set unless its
 *     function says so.
 *   - Pointers to outputs must not be NULL. Memory that the caller gives is only used during the
 *     call. What a function creates, its caller frees with the function that is named there.
 *   - There is no global state, no output to a terminal, and no exception or signal.
 *   - A bundle does not change: several threads may use it at once. An encoder is for one thread at
 *     a time. Different encoders, also of one bundle, may be used at once.
 */
#ifndef EDGECLOUD_H
#define EDGECLOUD_H

#include <stddef.h>
#include <stdint.h>

#define EDGECLOUD_VERSION "0.2.0"

#if defined(_WIN32) && defined(EDGECLOUD_SHARED)
#ifdef EDGECLOUD_BUILD
#define EDGECLOUD_API __declspec(dllexport)
#else
#define EDGECLOUD_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define EDGECLOUD_API __attribute__((visibility("default")))
#else
#define EDGECLOUD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The edge half of a bundle: shape rule, tables, and the encoder's weights. */
typedef struct edgecloud_bundle edgecloud_bundle;
/* A bundle's encoder with the memory and the threads that it works with. */
typedef struct edgecloud_encoder edgecloud_encoder;

/* The numbers do not change between releases; later ones may add some. */
typedef enum edgecloud_status {
  EDGECLOUD_OK = 0,
  EDGECLOUD_BAD_ARGUMENT = 1, /* NULL where it is not allowed, or a value out of range */
  EDGECLOUD_NO_MEMORY = 2,
  EDGECLOUD_BAD_FILE = 3,        /* a file of the bundle is missing or cannot be read */
  EDGECLOUD_BAD_BUNDLE = 4,      /* the bundle is damaged, or of another release */
  EDGECLOUD_BAD_IMAGE = 5,       /* an image of a size that cannot be encoded */
  EDGECLOUD_SMALL_BUFFER = 6,    /* the caller's memory is too small; see the function */
  EDGECLOUD_BAD_FEATURE_FILE = 7,/* a feature file that is damaged or no feature file */
  EDGECLOUD_OTHER_BUNDLE = 8,    /* a feature file of another bundle */
  EDGECLOUD_SMALL_BUDGET = 9     /* fewer bytes are allowed than the smallest file has */
} edgecloud_status;

/* What went wrong, for users: one line of UTF-8 without a line feed, ended by a zero. */
typedef struct edgecloud_error {
  char text[256];
} edgecloud_error;

/* The release of the library that runs, as EDGECLOUD_VERSION. */
EDGECLOUD_API const char *edgecloud_version(void);

/* ---- Bundles ---- */

/* Reads edge.tables and edge.weights in a folder. Free with edgecloud_bundle_close.
 * Fails with BAD_ARGUMENT, BAD_FILE, BAD_BUNDLE, NO_MEMORY. */
EDGECLOUD_API edgecloud_status edgecloud_bundle_open(const char *folder, edgecloud_bundle **bundle,
                                                     edgecloud_error *error);

/* The same from the bytes of the two files, which are copied. Without weights (NULL and 0) the
 * bundle has tables only: edgecloud_decode works, edgecloud_encoder_new does not.
 * Fails with BAD_ARGUMENT, BAD_BUNDLE, NO_MEMORY. */
EDGECLOUD_API edgecloud_status edgecloud_bundle_from_memory(const void *tables, size_t tables_size,
                                                            const void *weights,
                                                            size_t weights_size,
                                                            edgecloud_bundle **bundle,
                                                            edgecloud_error *error);

/* Frees a bundle; NULL is allowed. Its encoders can be used on, and are freed on their own. */
EDGECLOUD_API void edgecloud_bundle_close(edgecloud_bundle *bundle);

typedef struct edgecloud_bundle_info {
  uint8_t fingerprint[32];  /* feature files have the first four bytes */
  uint32_t channels;        /* of the symbols */
  uint32_t stride, shrink;  /* rows = height / stride - shrink, and columns likewise */
  uint32_t max_symbols;     /* the most of one image */
  uint32_t resize, crop;    /* what images are prepared to: short side, then centred square */
  int small;                /* whether its files are small ones unless asked otherwise */
  int has_encoder;          /* whether the weights are there */
} edgecloud_bundle_info;

EDGECLOUD_API void edgecloud_bundle_describe(const edgecloud_bundle *bundle,
                                             edgecloud_bundle_info *info);

/* Whether it is a variable-rate bundle, whose encoders can be asked for a level or for bytes. */
EDGECLOUD_API int edgecloud_bundle_has_rates(const edgecloud_bundle *bundle);

/* ---- Encoding ---- */

/* What an encoder is made with. All zeros are the defaults. */
typedef struct edgecloud_options {
  int threads;        /* of one image, 1 to 256; 0 for 1 */
  int profile;        /* of the files: 0 as the bundle says, 1 plain, 2 small */
  const char *kernel; /* instruction set, by a name that edgecloud_encoder_kernel gives; NULL for
                         the fastest of this machine */
} edgecloud_options;

/* Makes an encoder; `options` may be NULL. Free with edgecloud_encoder_free.
 * Fails with BAD_ARGUMENT (also for a kernel that this machine lacks, a small file without context
 * tables, a bundle without weights), NO_MEMORY. */
EDGECLOUD_API edgecloud_status edgecloud_encoder_new(const edgecloud_bundle *bundle,
                                                     const edgecloud_options *options,
                                                     edgecloud_encoder **encoder,
                                                     edgecloud_error *error);

/* Frees an encoder; NULL is allowed. */
EDGECLOUD_API void edgecloud_encoder_free(edgecloud_encoder *encoder);

/* Name of the kernel that an encoder uses: avx512vnni, avxvnni, avx2, neon-dot, neon, wasm or
 * portable. */
EDGECLOUD_API const char *edgecloud_encoder_kernel(const edgecloud_encoder *encoder);

/* What is asked of files of a variable-rate bundle. All zeros ask for the bundle's default level.
 * max_bytes goes with each of the others; rate and target_bytes exclude each other. */
typedef struct edgecloud_budget {
  int has_rate;        /* whether a level is asked for */
  double rate;         /* the level, 0 to 15; the nearest sixteenth is taken */
  size_t max_bytes;    /* the most bytes of each file; 0 for any number */
  double target_bytes; /* what files shall have on average; 0 for no such target */
} edgecloud_budget;

/* Says what the files of the next images shall be: docs/variable-rate.md has the rules. A stream of
 * images with a mean begins anew. NULL asks for nothing, as a new encoder does.
 * Fails with BAD_ARGUMENT, also if anything is asked of a bundle with one rate. */
EDGECLOUD_API edgecloud_status edgecloud_encoder_ask(edgecloud_encoder *encoder,
                                                     const edgecloud_budget *budget,
                                                     edgecloud_error *error);

/* Encodes an image to a feature file.
 *
 * pixels: RGB, one byte a level, top row first; a row begins row_bytes after the one before, or
 *   3 * width if row_bytes is 0. height and width are multiples of 8: edgecloud_prepare makes such
 *   pixels of any image.
 * file, size: the feature file. It belongs to the encoder, and is valid until its next call.
 *
 * Fails with BAD_ARGUMENT, BAD_IMAGE, NO_MEMORY, and with SMALL_BUDGET if not even a file without
 * channels has as few bytes as max_bytes. */
EDGECLOUD_API edgecloud_status edgecloud_encode(edgecloud_encoder *encoder, const uint8_t *pixels,
                                                size_t height, size_t width, size_t row_bytes,
                                                const uint8_t **file, size_t *size,
                                                edgecloud_error *error);

/* The same into the caller's memory. Fails with SMALL_BUFFER if the file has more than `capacity`
 * bytes; `size` then says how many. edgecloud_max_file_bytes are always enough. */
EDGECLOUD_API edgecloud_status edgecloud_encode_into(edgecloud_encoder *encoder,
                                                     const uint8_t *pixels, size_t height,
                                                     size_t width, size_t row_bytes, uint8_t *file,
                                                     size_t capacity, size_t *size,
                                                     edgecloud_error *error);

/* The most bytes that a file of such an image can have; 0 if it cannot be encoded. Real files are
 * far smaller. */
EDGECLOUD_API size_t edgecloud_max_file_bytes(const edgecloud_bundle *bundle, size_t height,
                                              size_t width);

/* Resizes an image as the bundle says and crops its centre, with the same pixels as the Python
 * package: what edgecloud_encode takes.
 *
 * pixels, row_bytes: as in edgecloud_encode, of any height and width from 1 to 2^24, and of 2^30
 *   pixels at most.
 * out: receives crop x crop pixels of 3 bytes (edgecloud_bundle_info). It must not overlap pixels.
 *
 * Fails with BAD_ARGUMENT, BAD_IMAGE, NO_MEMORY. */
EDGECLOUD_API edgecloud_status edgecloud_prepare(const edgecloud_bundle *bundle,
                                                 const uint8_t *pixels, size_t height, size_t width,
                                                 size_t row_bytes, uint8_t *out,
                                                 edgecloud_error *error);

/* ---- Feature files ---- */

typedef struct edgecloud_file_info {
  uint8_t fingerprint[4];
  uint32_t version;       /* 1, or 2 of variable-rate bundles */
  uint32_t height, width; /* of the image, in pixels */
  int small;              /* whether it is a small file */
  int step;               /* of version 2: rate level in sixteenths; -1 in version 1 */
  int kept;               /* of a cut file: channels that it has; -1 if it has all */
  size_t payload_bytes;
} edgecloud_file_info;

/* Takes a feature file apart, and checks all that can be checked without its bundle. All releases'
 * versions are read. Fails with BAD_ARGUMENT, BAD_FEATURE_FILE. */
EDGECLOUD_API edgecloud_status edgecloud_file_parse(const void *file, size_t size,
                                                    edgecloud_file_info *info,
                                                    edgecloud_error *error);

/* Decodes a feature file to symbols [channels][rows][columns].
 *
 * symbols: the caller's memory for `capacity` symbols.
 * rows, columns: the shape; there are channels * rows * columns symbols. They are set too where the
 *   call fails with SMALL_BUFFER, so a first call with a capacity of 0 asks for the size.
 *
 * Fails with BAD_ARGUMENT, BAD_FEATURE_FILE, OTHER_BUNDLE, SMALL_BUFFER, NO_MEMORY. */
EDGECLOUD_API edgecloud_status edgecloud_decode(const edgecloud_bundle *bundle, const void *file,
                                                size_t size, int16_t *symbols, size_t capacity,
                                                uint32_t *rows, uint32_t *columns,
                                                edgecloud_error *error);

#ifdef __cplusplus
}
#endif

#endif
