import IntFlashAttention
import TensorFiles

/// Queries, keys and values on the host.
struct Operands {
  let name: String
  let shape: AttentionShape
  let query: [Float]
  let key: [Float]
  let value: [Float]
}

/// The committed activations of a language model, a file per layer.
struct Activations {
  /// Attention heads of one layer: [heads, tokens, channels].
  private struct Layer {
    let name: String
    let query: [[Float]]
    let key: [[Float]]
    let value: [[Float]]
    let channels: Int
  }
  private let layers: [Layer]
  private let tokens: Int

  /// Reads files with tensors `q`, `k` and `v`; keeps the first tokens.
  init(paths: [String], tokens: Int) throws {
    var kept = tokens
    layers = try paths.map { path in
      let file = try SafetensorsFile(path: path)
      func heads(_ name: String) throws -> (rows: [[Float]], channels: Int) {
        let shape = try file.entry(name).shape
        guard shape.count == 3 else { throw Stop(description: "\(path): \(name) is not [H, N, D]") }
        kept = min(kept, shape[1])
        let all = try file.tensor(name).copyFloats()
        let size = shape[1] * shape[2]
        return ((0..<shape[0]).map { Array(all[$0 * size..<($0 + 1) * size]) }, shape[2])
      }
      let (query, key, value) = (try heads("q"), try heads("k"), try heads("v"))
      let name = path.split(separator: "/").last.map(String.init) ?? path
      return Layer(
        name: String(name.split(separator: ".").first ?? ""),
        query: query.rows,
        key: key.rows,
        value: value.rows,
        channels: query.channels
      )
    }
    guard !layers.isEmpty else { throw Stop(description: "no files with activations") }
    self.tokens = kept
  }

  /// Each layer as it is, and the channels of several layers side by side for wider heads.
  func operands() throws -> [Operands] {
    let channels = layers[0].channels
    var all: [Operands] = []
    for index in layers.indices { all.append(try operands(first: index, dimension: channels)) }
    for dimension in [96, 128, 256] where dimension > channels {
      all.append(try operands(first: 0, dimension: dimension))
    }
    return all
  }

  private func operands(first: Int, dimension: Int) throws -> Operands {
    let parts = (dimension + layers[0].channels - 1) / layers[0].channels
    let used = (0..<parts).map { layers[(first + $0) % layers.count] }
    func rows(_ heads: (Layer) -> [[Float]]) -> [Float] {
      var all: [Float] = []
      for head in heads(layers[0]).indices {
        for token in 0..<tokens {
          var row: [Float] = []
          for layer in used {
            let start = token * layer.channels
            row += heads(layer)[head][start..<start + layer.channels]
          }
          all += row.prefix(dimension)
        }
      }
      return all
    }
    return Operands(
      name: dimension == layers[0].channels ? used[0].name : "\(parts) layers",
      shape: try AttentionShape(
        queryHeadCount: layers[0].query.count,
        keyValueHeadCount: layers[0].key.count,
        queryLength: tokens,
        keyValueLength: tokens,
        headDimension: dimension
      ),
      query: rows(\.query),
      key: rows(\.key),
      value: rows(\.value)
    )
  }
}

extension Operands {
  /// The same keys for the last queries only.
  func last(_ count: Int) throws -> Operands {
    let (d, length) = (shape.headDimension, shape.queryLength)
    let count = min(count, length)
    var rows: [Float] = []
    for head in 0..<shape.queryHeadCount {
      let end = (head + 1) * length * d
      rows += query[end - count * d..<end]
    }
    return Operands(
      name: name,
      shape: try AttentionShape(
        queryHeadCount: shape.queryHeadCount,
        keyValueHeadCount: shape.keyValueHeadCount,
        queryLength: count,
        keyValueLength: shape.keyValueLength,
        headDimension: d
      ),
      query: rows,
      key: key,
      value: value
    )
  }

  /// Output and log-sum-exp of a backend.
  func attend(
    _ recipe: QuantizationRecipe,
    _ options: AttentionOptions,
    on backend: any AttentionBackend
  ) throws -> (output: [Float], logSumExp: [Float]) {
    let plan = try AttentionPlan(shape, recipe: recipe, options: options, on: backend)
    let q = try Tensor(query, shape: shape.queryShape)
    let k = try Tensor(key, shape: shape.keyShape)
    let v = try Tensor(value, shape: shape.valueShape)
    var output = try Tensor(.float32, shape: shape.outputShape)
    var sums = try Tensor(.float32, shape: shape.logSumExpShape)
    try plan.run(
      query: q.view,
      key: k.view,
      value: v.view,
      into: output.mutableView,
      logSumExp: sums.mutableView
    )
    return (output.copyFloats(), sums.copyFloats())
  }
}
