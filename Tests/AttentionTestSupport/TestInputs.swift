public import IntFlashAttention

/// Named distributions of queries, keys and values.
public enum InputKind: String, CaseIterable, Sendable {
  /// N(0, 1).
  case normal
  /// A strong common offset in some channels of queries and keys.
  case outlierChannel
  /// Token 0 draws most of the attention and has small values.
  case sink
  /// Keys drift, so that the row maximum keeps rising from tile to tile.
  case rising
  /// The opposite: the first tile holds the maximum.
  case falling
  /// All keys equal, so that all scores of a row are.
  case equalScores
  /// One value token far larger than the others: the exact row sum.
  case hugeValue
  /// Some rows of each operand are zero.
  case zeroRows
}

/// Queries, keys and values of one call.
public struct TestInputs: Sendable {
  /// Counts and sizes.
  public let shape: AttentionShape
  /// [B, Hq, Nq, D], row-major.
  public var query: [Float]
  /// [B, Hkv, Nk, D], row-major.
  public var key: [Float]
  /// [B, Hkv, Nk, Dv], row-major.
  public var value: [Float]

  /// Inputs of this kind; every value is a float16, so that all input types hold the same numbers.
  public init(_ shape: AttentionShape, _ kind: InputKind = .normal, seed: UInt64 = 1) {
    var random = TestRandom(seed: seed)
    func draw(_ shape: [Int]) -> [Float] {
      (0..<shape.reduce(1, *)).map { _ in random.normal() }
    }
    self.shape = shape
    query = draw(shape.queryShape)
    key = draw(shape.keyShape)
    value = draw(shape.valueShape)
    apply(kind)
    query = query.map { Half.rounded($0) }
    key = key.map { Half.rounded($0) }
    value = value.map { Half.rounded($0) }
  }

  private mutating func apply(_ kind: InputKind) {
    let (d, dv) = (shape.headDimension, shape.valueDimension)
    let length = max(shape.keyValueLength, 1)
    func position(_ index: Int, _ dimension: Int) -> (token: Int, channel: Int) {
      (index / dimension % length, index % dimension)
    }
    switch kind {
    case .normal: break
    case .outlierChannel:
      for index in query.indices where index % d % 7 == 0 { query[index] += 3 }
      for index in key.indices where index % d % 5 == 0 { key[index] -= 6 }
    case .sink:
      for index in query.indices where index % d % 4 == 0 { query[index] += 2 }
      for index in key.indices where position(index, d).token == 0 && index % d % 4 == 0 {
        key[index] += 2
      }
      for index in value.indices where position(index, dv).token == 0 { value[index] *= 0.02 }
    case .rising, .falling:
      let slope: Float = kind == .rising ? 6 : -6
      for index in query.indices { query[index] += 1 }
      for index in key.indices {
        key[index] += slope * Float(position(index, d).token) / Float(length)
      }
    case .equalScores:
      for index in key.indices { key[index] = key[index % d] }
    case .hugeValue:
      for index in value.indices where position(index, dv).token == length / 3 {
        value[index] *= 500
      }
    case .zeroRows:
      for index in query.indices where index / d % 3 == 1 { query[index] = 0 }
      for index in key.indices where index / d % 4 == 2 { key[index] = 0 }
      for index in value.indices where index / dv % 5 == 3 { value[index] = 0 }
    }
  }
}

/// What a call gave.
public struct TestResult: Sendable, Equatable {
  /// [B, Hq, Nq, Dv], row-major.
  public let output: [Float]
  /// [B, Hq, Nq], row-major.
  public let logSumExp: [Float]

  /// Stores both.
  public init(output: [Float], logSumExp: [Float]) {
    self.output = output
    self.logSumExp = logSumExp
  }
}

extension TestInputs {
  /// Runs a recipe on these inputs; outputs start as NaN, so that what is not written shows.
  public func attend(
    _ recipe: QuantizationRecipe,
    _ options: AttentionOptions = AttentionOptions(),
    on backend: any AttentionBackend,
    inputType: ElementType = .float32
  ) throws(AttentionError) -> TestResult {
    let plan = try AttentionPlan(shape, recipe: recipe, options: options, on: backend)
    return try run(plan, inputType: inputType)
  }

  /// Runs a plan on these inputs.
  public func run(
    _ plan: AttentionPlan,
    inputType: ElementType = .float32
  ) throws(AttentionError) -> TestResult {
    let q = try Tensor(query, shape: shape.queryShape, elementType: inputType)
    let k = try Tensor(key, shape: shape.keyShape, elementType: inputType)
    let v = try Tensor(value, shape: shape.valueShape, elementType: inputType)
    let outputCount = shape.outputShape.reduce(1, *)
    var output = try Tensor(
      [Float](repeating: .nan, count: outputCount),
      shape: shape.outputShape
    )
    var logSumExp = try Tensor(
      [Float](repeating: .nan, count: shape.logSumExpShape.reduce(1, *)),
      shape: shape.logSumExpShape
    )
    try plan.run(
      query: q.view,
      key: k.view,
      value: v.view,
      into: output.mutableView,
      logSumExp: logSumExp.mutableView
    )
    return TestResult(output: output.copyFloats(), logSumExp: logSumExp.copyFloats())
  }

  /// Exact attention in double precision.
  public func exact(_ options: AttentionOptions = AttentionOptions()) throws(AttentionError)
    -> TestResult
  {
    try attend(Precision.float32.recipe, options, on: ReferenceBackend())
  }
}
