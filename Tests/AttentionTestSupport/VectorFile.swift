#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif
public import IntFlashAttention
import TensorFiles

/// Queries, keys and values of a committed file, and what else is stored with them.
public struct VectorFile: Sendable {
  /// The operands, as float32.
  public let inputs: TestInputs
  /// Scale, cap and mask from the file's metadata.
  public let options: AttentionOptions
  /// The query rows for which outputs and query codes are stored.
  public let rows: [Int]
  /// Every other tensor by name, as float32.
  public let tensors: [String: [Float]]

  /// Reads a file with tensors `q`, `k` and `v` of [heads, tokens, dimension].
  ///
  /// - Parameters:
  ///   - path: where it is.
  ///   - tokens: keep the first so many tokens only; nil is all of them.
  /// - Throws: what the reader throws.
  public init(path: String, tokens: Int? = nil) throws {
    let file = try SafetensorsFile(path: path)
    var tensors: [String: [Float]] = [:]
    for name in file.tensorNames { tensors[name] = try file.tensor(name).copyFloats() }
    func operand(_ name: String) throws -> (shape: [Int], values: [Float]) {
      let shape = try file.entry(name).shape
      let kept = min(tokens ?? shape[1], shape[1])
      let all = tensors.removeValue(forKey: name) ?? []
      var values: [Float] = []
      for head in 0..<shape[0] {
        let start = head * shape[1] * shape[2]
        values += all[start..<start + kept * shape[2]]
      }
      return ([shape[0], kept, shape[2]], values)
    }
    let (q, k, v) = (try operand("q"), try operand("k"), try operand("v"))
    let shape = try AttentionShape(
      queryHeadCount: q.shape[0],
      keyValueHeadCount: k.shape[0],
      queryLength: q.shape[1],
      keyValueLength: k.shape[1],
      headDimension: q.shape[2],
      valueDimension: v.shape[2]
    )
    var inputs = TestInputs(shape)
    inputs.query = q.values
    inputs.key = k.values
    inputs.value = v.values
    self.inputs = inputs
    self.tensors = tensors
    rows = (file.metadata["rows"] ?? "").split(separator: ",").compactMap { Int($0) }
    options = AttentionOptions(
      softmaxScale: file.metadata["scale"].flatMap { Float($0) },
      softcap: file.metadata["softcap"].flatMap { Float($0) },
      mask: Self.mask(file.metadata["mask"] ?? (file.metadata["causal"] == "1" ? "causal" : "full"))
    )
  }

  private static func mask(_ name: String) -> AttentionMask {
    if name == "causal" { return .causal }
    guard name.hasPrefix("sliding:") else { return .full }
    let ends = name.dropFirst("sliding:".count).split(separator: ",").map { Int($0) }
    return .sliding(left: ends.first ?? nil, right: ends.last ?? nil)
  }
}
