import Foundation
public import IntFlashAttention

/// What a call may have beside query, key and value.
public struct TestAdditions: Sendable {
  /// Elements of a mask, row-major, and its shape.
  public var mask: (elements: [Float], shape: [Int])?
  /// How the mask is stored; `.int8` is boolean.
  public var maskType = ElementType.float32
  /// [Hq].
  public var alibiSlopes: [Float]?
  /// [Hq].
  public var sinks: [Float]?

  /// Nothing.
  public init() {}
}

extension TestInputs {
  /// Runs a plan with these additions; outputs start as NaN.
  public func run(
    _ plan: AttentionPlan,
    _ additions: TestAdditions
  ) throws(AttentionError) -> TestResult {
    let q = try Tensor(query, shape: shape.queryShape)
    let k = try Tensor(key, shape: shape.keyShape)
    let v = try Tensor(value, shape: shape.valueShape)
    let (heads, rows) = (shape.outputShape, shape.logSumExpShape)
    var output = try Tensor([Float](repeating: .nan, count: heads.reduce(1, *)), shape: heads)
    var logSumExp = try Tensor([Float](repeating: .nan, count: rows.reduce(1, *)), shape: rows)
    let mask = try Tensor(
      additions.mask?.elements ?? [],
      shape: additions.mask?.shape ?? [0],
      elementType: additions.maskType
    )
    let slopes = try Tensor(additions.alibiSlopes ?? [], shape: [additions.alibiSlopes?.count ?? 0])
    let sinks = try Tensor(additions.sinks ?? [], shape: [additions.sinks?.count ?? 0])
    try plan.run(
      query: q.view,
      key: k.view,
      value: v.view,
      mask: additions.mask == nil ? nil : mask.view,
      alibiSlopes: additions.alibiSlopes == nil ? nil : slopes.view,
      sinks: additions.sinks == nil ? nil : sinks.view,
      into: output.mutableView,
      logSumExp: logSumExp.mutableView
    )
    return TestResult(output: output.copyFloats(), logSumExp: logSumExp.copyFloats())
  }

  /// Attention as a textbook writes it, in double precision: every logit of a row, one softmax.
  ///
  /// It shares nothing with the library but the options that it reads.
  public func naive(_ options: AttentionOptions, _ additions: TestAdditions) -> TestResult {
    var (output, logSumExp): ([Float], [Float]) = ([], [])
    for batch in 0..<shape.batchCount {
      for head in 0..<shape.queryHeadCount {
        for row in 0..<shape.queryLength {
          let logits = (0..<shape.keyValueLength).map { key in
            isVisible(row, key, options)
              ? logit(batch, head, row, key, options, additions) : -.infinity
          }
          let sink = additions.sinks.map { Double($0[head]) } ?? -.infinity
          let top = max(logits.max() ?? -.infinity, sink)
          let weights = logits.map { $0 == -.infinity ? 0 : exp($0 - top) }
          let total = weights.reduce(sink == -.infinity ? 0 : exp(sink - top), +)
          logSumExp.append(total > 0 ? Float(top + log(total)) : -.infinity)
          for channel in 0..<shape.valueDimension {
            var sum = 0.0
            for (key, weight) in weights.enumerated() where weight > 0 {
              sum += weight * Double(value[valueIndex(batch, head, key) + channel])
            }
            output.append(total > 0 ? Float(sum / total) : 0)
          }
        }
      }
    }
    return TestResult(output: output, logSumExp: logSumExp)
  }

  private func valueIndex(_ batch: Int, _ head: Int, _ key: Int) -> Int {
    let shared = batch * shape.keyValueHeadCount + head / shape.groupSize
    return (shared * shape.keyValueLength + key) * shape.valueDimension
  }

  /// Whether the options let the row see the key.
  private func isVisible(_ row: Int, _ key: Int, _ options: AttentionOptions) -> Bool {
    let position = row + shape.keyValueLength - shape.queryLength
    let isInMask =
      switch options.mask {
      case .full: true
      case .causal: key <= position
      case .sliding(let left, let right):
        (left.map { key >= position - $0 } ?? true) && (right.map { key <= position + $0 } ?? true)
      case .prefixCausal(let prefix): key <= position || key < prefix
      }
    guard isInMask, let blocks = options.blocks else { return isInMask }
    return blocks.visible[row / blocks.queryBlockLength].contains(key / blocks.keyBlockLength)
  }

  private func logit(
    _ batch: Int,
    _ head: Int,
    _ row: Int,
    _ key: Int,
    _ options: AttentionOptions,
    _ additions: TestAdditions
  ) -> Double {
    let d = shape.headDimension
    let q = ((batch * shape.queryHeadCount + head) * shape.queryLength + row) * d
    let shared = batch * shape.keyValueHeadCount + head / shape.groupSize
    let k = (shared * shape.keyValueLength + key) * d
    var product = 0.0
    for channel in 0..<d { product += Double(query[q + channel]) * Double(self.key[k + channel]) }
    var logit = product * Double(options.softmaxScale ?? 1 / Float(d).squareRoot())
    if let cap = options.softcap.map(Double.init) { logit = cap * tanh(logit / cap) }
    let position = row + shape.keyValueLength - shape.queryLength
    logit -= Double(additions.alibiSlopes?[head] ?? 0) * Double((position - key).magnitude)
    guard let mask = additions.mask else { return logit }
    let full = [batch, head, row, key].suffix(mask.shape.count)
    var index = 0
    for (place, size) in zip(full, mask.shape) { index = index * size + (size == 1 ? 0 : place) }
    let element = mask.elements[index]
    if additions.maskType == .int8 { return element == 0 ? -.infinity : logit }
    return element <= -0x1p80 ? -.infinity : logit + Double(element)
  }
}
