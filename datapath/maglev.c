/* The fill of a Maglev table, for maglev.py: same bytes as its fill_in_python, some thirty times faster. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

struct backend {
    uint32_t place, skip, weight, credit;
};

static uint32_t gcd(uint32_t one, uint32_t other)
{
    while (other) {
        uint32_t rest = one % other;
        one = other;
        other = rest;
    }
    return one;
}

static void take_turns(struct backend *backends, uint32_t count, uint32_t full, uint8_t *taken, uint32_t *table, uint32_t size)
{
    uint32_t left = size;

    for (;;) {
        for (uint32_t index = 0; index < count; index++) {
            struct backend *turn = &backends[index];
            uint32_t place = turn->place, skip = turn->skip;

            turn->credit += turn->weight;
            if (turn->credit < full)
                continue;
            turn->credit -= full;
            while (taken[place]) {
                place += skip;
                if (place >= size)
                    place -= size;
            }
            taken[place] = 1;
            table[place] = index;
            turn->place = place;
            if (--left == 0)
                return;
        }
    }
}

/* Everything that a wrong index or an endless search could come from is refused here. */
static const char *prepare(struct backend *backends, const Py_buffer *views, uint32_t count, uint32_t size, uint32_t *full)
{
    const uint32_t *offsets = views[0].buf, *skips = views[1].buf, *weights = views[2].buf;

    *full = 0;
    for (uint32_t index = 0; index < count; index++)
        if (weights[index] > *full)
            *full = weights[index];
    if (*full == 0 || *full > INT32_MAX)
        return "the largest weight must lie between 1 and 2^31 - 1";
    for (uint32_t index = 0; index < count; index++) {
        if (offsets[index] >= size || skips[index] >= size || gcd(skips[index], size) != 1)
            return "an offset lies outside the table, or a skip does not reach every slot";
        backends[index] = (struct backend){offsets[index], skips[index], weights[index], *full - weights[index]};
    }
    return NULL;
}

static PyObject *fill_views(const Py_buffer *views)
{
    Py_ssize_t count = views[0].len / 4, size = views[3].len / 4;
    const char *wrong = NULL;

    if (views[1].len != views[0].len || views[2].len != views[0].len || count == 0)
        wrong = "offsets, skips and weights must be equally many, and at least one";
    else if (size < 2 || size > INT32_MAX || count > INT32_MAX)
        wrong = "the table must have 2 to 2^31 - 1 slots";
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    struct backend *backends = malloc((size_t)count * sizeof(*backends));
    uint8_t *taken = calloc((size_t)size, 1);
    uint32_t full;

    if (!backends || !taken) {
        PyErr_NoMemory();
    } else if ((wrong = prepare(backends, views, (uint32_t)count, (uint32_t)size, &full))) {
        PyErr_SetString(PyExc_ValueError, wrong);
    } else {
        Py_BEGIN_ALLOW_THREADS
        take_turns(backends, (uint32_t)count, full, taken, views[3].buf, (uint32_t)size);
        Py_END_ALLOW_THREADS
    }
    free(backends);
    free(taken);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *fill(PyObject *module, PyObject *args)
{
    PyObject *given[4];
    Py_buffer views[4];
    PyObject *result = NULL;
    int held = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOOO", &given[0], &given[1], &given[2], &given[3]))
        return NULL;
    for (; held < 4; held++) {
        if (PyObject_GetBuffer(given[held], &views[held], (held == 3 ? PyBUF_WRITABLE : 0) | PyBUF_FORMAT))
            break;
        if (views[held].itemsize != 4) {
            PyErr_SetString(PyExc_TypeError, "arrays of 32-bit numbers are expected");
            held++;
            break;
        }
    }
    if (held == 4 && !PyErr_Occurred())
        result = fill_views(views);
    while (held--)
        PyBuffer_Release(&views[held]);
    return result;
}

static PyMethodDef methods[] = {
    {"fill", fill, METH_VARARGS, "fill(offsets, skips, weights, table): as fill_in_python of tidegate.datapath.maglev."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "tidegate.datapath._maglev", "Fills Maglev tables.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__maglev(void)
{
    return PyModuleDef_Init(&module);
}
