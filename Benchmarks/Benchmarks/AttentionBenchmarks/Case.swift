import Benchmark
import IntFlashAttention

/// One call that is measured.
struct Case: Sendable {
  let precision: Precision
  let heads: (query: Int, keyValue: Int)
  let queryLength: Int
  let length: Int
  let dimension: Int
  let mask: AttentionMask
  let inputType: ElementType
  let instructionSet: InstructionSet

  /// A call of a batch of one.
  init(
    _ precision: Precision,
    heads: (query: Int, keyValue: Int) = (8, 8),
    queryLength: Int? = nil,
    length: Int,
    dimension: Int = 64,
    mask: AttentionMask = .full,
    inputType: ElementType = .float32,
    _ instructionSet: InstructionSet = .best
  ) {
    self.precision = precision
    self.heads = heads
    self.queryLength = queryLength ?? length
    self.length = length
    self.dimension = dimension
    self.mask = mask
    self.inputType = inputType
    self.instructionSet = instructionSet
  }

  /// What it is called after the name of its suite.
  var name: String {
    let queries = queryLength == length ? "" : " Nq\(queryLength)"
    return "\(precision.rawValue) B1 H\(heads.query)/\(heads.keyValue)\(queries) N\(length) "
      + "D\(dimension) \(mask == .causal ? "causal" : "full") "
      + (inputType == .float32 ? "" : "\(inputType.rawValue) ") + instructionSet.rawValue
  }

  /// Adds it to a suite; inputs and plan are made before it is measured.
  func register(_ suite: String) {
    Benchmark("\(suite) \(name)") { _, call in
      try call.body.run()
    } setup: {
      Call(try Call.Body(self))
    }
  }
}

/// A plan with its operands, as the framework can keep it.
final class Call: Sendable {
  let body: Body

  init(_ body: consuming Body) {
    self.body = body
  }

  struct Body: ~Copyable, Sendable {
    private let plan: AttentionPlan
    private let query: Tensor
    private let key: Tensor
    private let value: Tensor

    /// Plans, and draws operands from U(-1, 1).
    init(_ description: Case) throws {
      let shape = try AttentionShape(
        queryHeadCount: description.heads.query,
        keyValueHeadCount: description.heads.keyValue,
        queryLength: description.queryLength,
        keyValueLength: description.length,
        headDimension: description.dimension
      )
      let plan = try AttentionPlan(
        shape,
        precision: description.precision,
        options: AttentionOptions(mask: description.mask),
        on: CPUBackend(instructionSet: description.instructionSet)
      )
      let type = description.inputType
      let query = try Self.noise(shape.queryShape, type)
      let key = try Self.noise(shape.keyShape, type)
      let value = try Self.noise(shape.valueShape, type)
      self.plan = plan
      self.query = query
      self.key = key
      self.value = value
    }

    private static func noise(_ shape: [Int], _ type: ElementType) throws -> Tensor {
      let values = (0..<shape.reduce(1, *)).map { _ in Float.random(in: -1...1) }
      return try Tensor(values, shape: shape, elementType: type)
    }

    /// One call; its output is made anew, as by one who keeps it.
    func run() throws {
      var output = try Tensor(.float32, shape: plan.descriptor.shape.outputShape)
      try plan.run(query: query.view, key: key.view, value: value.view, into: output.mutableView)
      blackHole(output.view[0, 0, 0, 0])
    }
  }
}
