internal import CAttentionKernels
package import IntFlashAttention

/// The generated source of one plan's kernels: a few lines that include and instantiate.
package struct KernelSource: Hashable, Sendable {
  /// Entry points, by what they do.
  package enum Entry: String, Hashable, Sendable, CaseIterable {
    case survey, means, quantizeRows, valueScales, valueCodes, convertRows, keepRows, appendValues
    case attend, merge

    /// The name of the function.
    package var name: String { "intfa_" + rawValue }
  }

  package let text: String
  /// The entry points that it has.
  package let entries: [Entry]

  /// The kernels that a method needs, for these tile sizes.
  package init(_ method: CUDAMethod, _ sizes: CUDATileSizes) {
    let elements = sizes.elementsPerLane
    let attention = Self.attention(method, sizes)
    var lines = ["#include \"values.cuh\"", "#include \"\(attention.file)\""]
    var entries: [Entry] = []
    func define(_ entry: Entry, _ parameters: String, _ body: String, threads: Int = 256) {
      entries.append(entry)
      lines.append("KERNEL(\(entry.name), \(parameters), \(threads)) { \(body); }")
    }
    define(.survey, "intfa_cuda_survey", "survey_rows<\(elements)>(p)")
    if method.hasIntegerProducts {
      let transposed = sizes.family == .sm90
      define(.means, "intfa_cuda_mean", "finish_means<\(elements)>(p)")
      define(.quantizeRows, "intfa_cuda_quantize", "quantize_rows<\(elements)>(p)")
      define(.valueScales, "intfa_cuda_value_scales", "find_value_scales(p)")
      define(
        .valueCodes,
        "intfa_cuda_value_codes",
        "quantize_values<\(elements), \(transposed)>(p)"
      )
    } else {
      define(.convertRows, "intfa_cuda_convert", "convert_rows<\(elements)>(p)")
    }
    define(.attend, attention.parameters, attention.body, threads: sizes.threadCount)
    define(.merge, "intfa_cuda_output", "merge_splits<\(elements)>(p)")
    lines.append(
      "static_assert(\(attention.bytes)() == \(sizes.sharedByteCount), \"shared memory\");"
    )
    text = lines.joined(separator: "\n") + "\n"
    self.entries = entries
  }

  /// The kernels of a cache, for these tile sizes of a call on it.
  package init(cached sizes: CUDATileSizes) {
    let elements = sizes.elementsPerLane
    let attention = Self.attention(.int8, sizes)
    let kernels: [(entry: Entry, parameters: String, body: String)] = [
      (.survey, "intfa_cuda_survey", "survey_rows<\(elements)>(p)"),
      (.means, "intfa_cuda_mean", "finish_means<\(elements)>(p)"),
      (.quantizeRows, "intfa_cuda_quantize", "quantize_rows<\(elements)>(p)"),
      (.valueScales, "intfa_cuda_value_scales", "find_value_scales(p)"),
      (.keepRows, "intfa_cuda_keep", "keep_rows<\(elements)>(p)"),
      (.appendValues, "intfa_cuda_append", "append_values<\(elements)>(p)"),
      (.attend, attention.parameters, attention.body),
      (.merge, "intfa_cuda_output", "merge_splits<\(elements)>(p)"),
    ]
    var lines = ["#include \"cache.cuh\"", "#include \"\(attention.file)\""]
    for (entry, parameters, body) in kernels {
      let threads = entry == .attend ? sizes.threadCount : 256
      lines.append("KERNEL(\(entry.name), \(parameters), \(threads)) { \(body); }")
    }
    lines.append(
      "static_assert(\(attention.bytes)() == \(sizes.sharedByteCount), \"shared memory\");"
    )
    text = lines.joined(separator: "\n") + "\n"
    entries = kernels.map(\.entry)
  }

  private static func attention(
    _ method: CUDAMethod,
    _ sizes: CUDATileSizes
  ) -> (file: String, parameters: String, body: String, bytes: String) {
    let arguments = "<\(sizes.dimension), \(sizes.threadCount / 32), \(sizes.tileLength)>"
    switch method {
    case .int8, .int8Paper:
      if sizes.family == .sm90 {
        let common = "\(sizes.dimension), \(sizes.tileLength), \(sizes.stageCount)"
        // The product of a tile with 256 channels fits into registers in parts only.
        let parts = sizes.dimension > 128 ? 4 : 1
        return (
          "attention_int8_sm90.cuh", "intfa_cuda_attention_sm90",
          "attention_int8_sm90<\(common), \(parts)>(p)", "shared_bytes_int8_sm90<\(common)>"
        )
      }
      return (
        "attention_int8_sm80.cuh", "intfa_cuda_attention",
        "attention_int8_sm80\(arguments)(p)", "shared_bytes_int8_sm80\(arguments)"
      )
    case .float(let type):
      let typed =
        "<\(sizes.dimension), \(sizes.threadCount / 32), \(sizes.tileLength), "
        + "\(type == .bfloat16)>"
      return (
        "attention_float16_sm80.cuh", "intfa_cuda_attention_16",
        "attention_float16_sm80\(typed)(p)", "shared_bytes_float16_sm80\(arguments)"
      )
    }
  }

  /// Every source that some plan has on a device of this generation.
  package static func all(major: Int) throws(AttentionError) -> Set<KernelSource> {
    var all: Set<KernelSource> = []
    for method in [CUDAMethod.int8, .int8Paper, .float(.bfloat16), .float(.float16)] {
      for dimension in [64, 96, 128, 256] {
        for queries in [1, CUDATileSizes.fewRows + 1] {
          let shape = try AttentionShape(
            queryHeadCount: 1,
            keyValueHeadCount: 1,
            queryLength: queries,
            keyValueLength: 1,
            headDimension: dimension
          )
          let sizes = CUDATileSizes(
            shape: shape,
            method: method,
            major: major,
            multiprocessorCount: 1
          )
          all.insert(KernelSource(method, sizes))
          if method == .int8 {
            let cached = CUDATileSizes(cached: shape, multiprocessorCount: 1)
            all.insert(KernelSource(cached: cached))
          }
        }
      }
    }
    return all
  }

  /// The embedded files that the source includes, directly and indirectly.
  package static let files: [(name: String, text: String)] = (0..<intfa_cuda_text_count()).map {
    unsafe (
      String(cString: intfa_cuda_text_name($0)),
      String(cString: intfa_cuda_text($0))
    )
  }
}
