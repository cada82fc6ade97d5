/* A C program that asks the installed library something. */
#include <stdio.h>
#include <vidkv/vidkv.h>

int main(void) {
    vidkv_params params;
    if (vidkv_params_from_preset("t1.65", &params) != VIDKV_OK) {
        fprintf(stderr, "%s\n", vidkv_last_error());
        return 1;
    }
    printf("%.3f\n", vidkv_true_bits(&params, VIDKV_KEYS, 128));
    return 0;
}
