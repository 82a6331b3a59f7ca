/* Encodes many images, one after the other, for tests of other processors:
 *
 *   stream_test BUNDLE [MAX_BYTES] < images > files
 *
 * MAX_BYTES is asked of a variable-rate bundle.
 * An image is its height, its width and a side, each of 32 bits, then its RGB pixels. It is
 * prepared as the bundle says, and of the result the central square of that side is encoded. A file
 * is written as its size, of 32 bits, then its bytes. All numbers are little-endian. */
#include <edgecloud.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char* text) {
  fprintf(stderr, "stream_test: %s\n", text);
  return 1;
}

static uint32_t number(const uint8_t* at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Reads, encodes and writes one image whose header was read; gives what main returns. */
static int one(const edgecloud_bundle* bundle, edgecloud_encoder* encoder, const uint8_t* header) {
  const size_t height = number(header), width = number(header + 4), side = number(header + 8);
  edgecloud_bundle_info info;
  edgecloud_error error;
  edgecloud_bundle_describe(bundle, &info);
  if (height < 1 || width < 1 || height > 8192 || width > 8192 || side > info.crop)
    return fail("an image has an impossible size");
  uint8_t *image = malloc(3 * height * width), *pixels = malloc((size_t)3 * info.crop * info.crop);
  const uint8_t* file;
  size_t size;
  if (!image || !pixels || fread(image, 3 * width, height, stdin) != height)
    return fail("an image is cut short");
  const size_t before = (info.crop - side) / 2, row = (size_t)3 * info.crop;
  if (edgecloud_prepare(bundle, image, height, width, 0, pixels, &error) ||
      edgecloud_encode(encoder, pixels + before * row + 3 * before, side, side, row, &file, &size,
                       &error))
    return fail(error.text);
  const uint8_t written[4] = {(uint8_t)size, (uint8_t)(size >> 8), (uint8_t)(size >> 16), 0};
  if (fwrite(written, 1, 4, stdout) != 4 || fwrite(file, 1, size, stdout) != size)
    return fail("cannot write a file");
  free(pixels);
  free(image);
  return 0;
}

int main(int count, char** arguments) {
  edgecloud_error error;
  edgecloud_bundle* bundle = NULL;
  edgecloud_encoder* encoder = NULL;
  if (count != 2 && count != 3) return fail("give BUNDLE, and MAX_BYTES if its rate varies");
  edgecloud_budget budget = {0};
  if (count == 3) budget.max_bytes = strtoul(arguments[2], NULL, 10);
  if (edgecloud_bundle_open(arguments[1], &bundle, &error) ||
      edgecloud_encoder_new(bundle, NULL, &encoder, &error) ||
      edgecloud_encoder_ask(encoder, &budget, &error))
    return fail(error.text);
  fprintf(stderr, "%s\n", edgecloud_encoder_kernel(encoder));
  uint8_t header[12];
  for (size_t got; (got = fread(header, 1, sizeof header, stdin)) > 0;)
    if (got != sizeof header || one(bundle, encoder, header)) return fail("stopped");
  edgecloud_encoder_free(encoder);
  edgecloud_bundle_close(bundle);
  return fflush(stdout) ? fail("cannot write the files") : 0;
}
