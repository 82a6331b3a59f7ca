/* Encodes raw RGB pixels to a feature file:
 *
 *   edgecloud_example BUNDLE HEIGHT WIDTH < pixels.rgb > feat.bin
 *
 * The image may have any size: it is resized and cropped as the bundle says. */
#include <edgecloud.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char *text) {
  fprintf(stderr, "edgecloud_example: %s\n", text);
  return 1;
}

int main(int count, char **arguments) {
  if (count != 4) return fail("give BUNDLE HEIGHT WIDTH");
  const size_t height = strtoul(arguments[2], NULL, 10);
  const size_t width = strtoul(arguments[3], NULL, 10);
  if (height < 1 || width < 1 || height > 16384 || width > 16384)
    return fail("sides are 1 to 16384 pixels");

  edgecloud_error error;
  edgecloud_bundle *bundle = NULL;
  edgecloud_encoder *encoder = NULL;
  if (edgecloud_bundle_open(arguments[1], &bundle, &error) ||
      edgecloud_encoder_new(bundle, NULL, &encoder, &error))
    return fail(error.text);

  edgecloud_bundle_info info;
  edgecloud_bundle_describe(bundle, &info);
  uint8_t *image = malloc(3 * height * width);
  uint8_t *pixels = malloc((size_t)3 * info.crop * info.crop);
  if (!image || !pixels) return fail("there is not enough memory");
  if (fread(image, 3 * width, height, stdin) != height) return fail("the pixels are cut short");

  const uint8_t *file;
  size_t size;
  if (edgecloud_prepare(bundle, image, height, width, 0, pixels, &error) ||
      edgecloud_encode(encoder, pixels, info.crop, info.crop, 0, &file, &size, &error))
    return fail(error.text);
  if (fwrite(file, 1, size, stdout) != size || fflush(stdout)) return fail("cannot write the file");

  free(pixels);
  free(image);
  edgecloud_encoder_free(encoder);
  edgecloud_bundle_close(bundle);
  return 0;
}
