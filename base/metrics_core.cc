/* SPDX-License-Identifier: Apache-2.0 */

/*
 * prometheus-cpp behind base/metrics.h. No exception leaves this file: what cannot fail in a right
 * program (a series of known labels) asserts, the rest becomes a struct err.
 *
 * Families are registered under their bare names; prefixes are put in front when the text is
 * written, which is how one set of numbers appears under two names.
 */

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

extern "C" {
#include "base/assert.h"
#include "base/buf.h"
#include "base/err.h"
}
#include "base/metrics.h"
#include "base/metrics_int.h"

#define LABEL_SIZE_MAX 128

struct metric {
    prometheus::Counter *counter = nullptr;
    prometheus::Gauge *gauge = nullptr;
    prometheus::Histogram *histogram = nullptr;
};

namespace
{

struct family {
    const struct metric_row *row = nullptr;
    std::vector<std::string> labels;
    prometheus::Family<prometheus::Counter> *counters = nullptr;
    prometheus::Family<prometheus::Gauge> *gauges = nullptr;
    prometheus::Family<prometheus::Histogram> *histograms = nullptr;
    std::map<std::string, std::unique_ptr<metric>> series; /* by joined label values */
    metric *only = nullptr;                                /* of a row without labels */
};

std::vector<std::string> split_labels(const char *text)
{
    std::vector<std::string> labels;
    std::stringstream parts(text);
    std::string label;

    while (std::getline(parts, label, ','))
        labels.push_back(label);
    return labels;
}

/* A label value as Prometheus will take it: UTF-8 and short. */
std::string label_value(const char *text)
{
    std::string value(text == nullptr ? "" : text,
                      text == nullptr ? 0 : strnlen(text, LABEL_SIZE_MAX));

    if (!metrics_text_is_utf8(value.c_str())) {
        for (char &c : value)
            c = (c & 0x80) ? '?' : c;
    }
    return value;
}

prometheus::Labels labels_of(const family &f, const std::vector<std::string> &values)
{
    prometheus::Labels labels;

    for (size_t i = 0; i < f.labels.size(); i++)
        labels[f.labels[i]] = values[i];
    return labels;
}

std::unique_ptr<metric> series_make(family &f, const prometheus::Labels &labels)
{
    auto series = std::make_unique<metric>();

    if (f.counters != nullptr)
        series->counter = &f.counters->Add(labels);
    else if (f.gauges != nullptr)
        series->gauge = &f.gauges->Add(labels);
    else
        series->histogram = &f.histograms->Add(
            labels, prometheus::Histogram::BucketBoundaries(f.row->buckets,
                                                            f.row->buckets + f.row->bucket_count));
    return series;
}

std::string join(const std::vector<std::string> &values)
{
    std::string joined;

    for (const std::string &value : values)
        joined += value + '\x1f';
    return joined;
}

std::vector<std::string> values_of(const family &f, const char *const *values)
{
    std::vector<std::string> texts;

    for (size_t i = 0; i < f.labels.size(); i++)
        texts.push_back(label_value(values[i]));
    return texts;
}

} // namespace

struct metrics {
    std::mutex mutex; /* guards the families' series; updates of a series need no lock */
    std::string prefix, prefix_again;
    bool has_prefix_again = false;
    prometheus::Registry registry;
    std::vector<family> families;
    prometheus::Family<prometheus::Counter> *overflows = nullptr;
};

static void family_register(struct metrics *metrics, const struct metric_row *row)
{
    family f;

    f.row = row;
    f.labels = split_labels(row->labels);
    if (f.labels.size() > METRICS_LABELS_MAX)
        throw std::invalid_argument("too many labels");
    switch (row->type) {
    case METRIC_TYPE_COUNTER:
        f.counters = &prometheus::BuildCounter().Name(row->name).Help(row->help).Register(
            metrics->registry);
        break;
    case METRIC_TYPE_GAUGE:
        f.gauges = &prometheus::BuildGauge().Name(row->name).Help(row->help).Register(
            metrics->registry);
        break;
    case METRIC_TYPE_HISTOGRAM:
        f.histograms = &prometheus::BuildHistogram().Name(row->name).Help(row->help).Register(
            metrics->registry);
        break;
    }
    if (f.labels.empty()) {
        auto only = series_make(f, {});

        f.only = only.get();
        f.series[""] = std::move(only);
    }
    metrics->families.push_back(std::move(f));
}

extern "C" int metrics_open(const struct metrics_options *options, struct metrics **ret_metrics,
                            struct err *err)
{
    const char *at = "";

    try {
        auto metrics = std::make_unique<struct metrics>();

        metrics->prefix = options->prefix;
        metrics->has_prefix_again = options->prefix_again != nullptr &&
                                    options->prefix_again[0] != '\0';
        if (metrics->has_prefix_again)
            metrics->prefix_again = options->prefix_again;
        for (size_t i = 0; i < options->row_count; i++) {
            at = options->rows[i].name;
            family_register(metrics.get(), &options->rows[i]);
        }
        at = "metrics_overflow_total";
        metrics->overflows = &prometheus::BuildCounter()
                                  .Name(at)
                                  .Help("sets of label values that were counted as 'other'")
                                  .Register(metrics->registry);
        *ret_metrics = metrics.release();
        return 0;
    } catch (const std::exception &e) {
        return err_set(err, ERR_INTERNAL, "metric '%s': %s", at, e.what());
    } catch (...) {
        return err_set(err, ERR_INTERNAL, "metric '%s' cannot be made", at);
    }
}

extern "C" void metrics_close(struct metrics **metrics_p)
{
    delete *metrics_p;
    *metrics_p = nullptr;
}

extern "C" struct metric *metrics_series(struct metrics *metrics, size_t index,
                                         const char *const *values)
{
    assert(index < metrics->families.size());
    try {
        std::lock_guard<std::mutex> guard(metrics->mutex);
        family &f = metrics->families[index];
        std::vector<std::string> texts = values_of(f, values);
        std::string key = join(texts);
        auto found = f.series.find(key);

        if (found != f.series.end())
            return found->second.get();
        if (f.series.size() >= METRICS_SERIES_MAX) {
            metrics->overflows->Add({{"metric", f.row->name}}).Increment();
            texts.assign(f.labels.size(), "other");
            key = join(texts);
            found = f.series.find(key);
            if (found != f.series.end())
                return found->second.get();
        }
        return (f.series[key] = series_make(f, labels_of(f, texts))).get();
    } catch (...) {
        NEVER("a series of a registered metric can be made");
    }
}

extern "C" struct metric *metrics_of(struct metrics *metrics, size_t index)
{
    assert(index < metrics->families.size());
    assert(metrics->families[index].only != nullptr);
    return metrics->families[index].only;
}

extern "C" void metrics_forget(struct metrics *metrics, size_t index, const char *const *values)
{
    assert(index < metrics->families.size());
    try {
        std::lock_guard<std::mutex> guard(metrics->mutex);
        family &f = metrics->families[index];
        auto found = f.series.find(join(values_of(f, values)));

        assert(f.only == nullptr);
        if (found == f.series.end())
            return;
        if (f.counters != nullptr)
            f.counters->Remove(found->second->counter);
        else if (f.gauges != nullptr)
            f.gauges->Remove(found->second->gauge);
        else
            f.histograms->Remove(found->second->histogram);
        f.series.erase(found);
    } catch (...) {
        NEVER("a series of a registered metric can be forgotten");
    }
}

extern "C" void metric_add(struct metric *metric, double more)
{
    if (metric->counter != nullptr) {
        assert(more >= 0);
        metric->counter->Increment(more);
    } else {
        assert(metric->gauge != nullptr);
        metric->gauge->Increment(more);
    }
}

extern "C" void metric_set(struct metric *metric, double value)
{
    assert(metric->gauge != nullptr);
    metric->gauge->Set(value);
}

extern "C" void metric_observe(struct metric *metric, double value)
{
    assert(metric->histogram != nullptr);
    metric->histogram->Observe(value);
}

extern "C" int metrics_core_write(struct metrics *metrics, struct buf *to, struct err *err)
{
    try {
        std::vector<prometheus::MetricFamily> families, all;
        std::ostringstream text;

        {
            std::lock_guard<std::mutex> guard(metrics->mutex);
            families = metrics->registry.Collect();
        }
        for (const prometheus::MetricFamily &f : families) {
            if (f.metric.empty()) /* a head without a series is no help to anybody */
                continue;
            all.push_back(f);
            all.back().name = metrics->prefix + f.name;
            if (metrics->has_prefix_again) {
                all.push_back(f);
                all.back().name = metrics->prefix_again + f.name;
            }
        }
        prometheus::TextSerializer().Serialize(text, all);
        buf_append(to, text.str().data(), text.str().size());
        return buf_check(to, "text of the metrics", err);
    } catch (...) {
        return err_set(err, ERR_INTERNAL, "metrics cannot be written");
    }
}
