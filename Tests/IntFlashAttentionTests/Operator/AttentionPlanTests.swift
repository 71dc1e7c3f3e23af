import AttentionTestSupport
import IntFlashAttention
import Testing

/// Every bad input with the error that it must give, and that nothing is written then.
@Suite struct AttentionPlanTests {
  private func makeShape() throws -> AttentionShape {
    try AttentionShape(
      batchCount: 2,
      queryHeadCount: 2,
      keyValueHeadCount: 1,
      queryLength: 5,
      keyValueLength: 7,
      headDimension: 8,
      valueDimension: 4
    )
  }

  /// The error of a run with operands of these shapes and types, nil where there is none.
  private func failure(
    query: [Int] = [2, 2, 5, 8],
    key: [Int] = [2, 1, 7, 8],
    value: [Int] = [2, 1, 7, 4],
    output: [Int] = [2, 2, 5, 4],
    logSumExp: [Int] = [2, 2, 5],
    types: [ElementType] = [.float32, .float32, .float32, .float32, .float32]
  ) throws -> AttentionError? {
    let plan = try AttentionPlan(makeShape())
    let q = try Tensor(types[0], shape: query)
    let k = try Tensor(types[1], shape: key)
    let v = try Tensor(types[2], shape: value)
    var o = try Tensor(types[3], shape: output)
    var l = try Tensor(types[4], shape: logSumExp)
    do throws(AttentionError) {
      try plan.run(
        query: q.view,
        key: k.view,
        value: v.view,
        into: o.mutableView,
        logSumExp: l.mutableView
      )
    } catch { return error }
    return nil
  }

  @Test func acceptsWhatFits() throws {
    #expect(try failure() == nil)
    #expect(try failure(types: [.float16, .bfloat16, .float32, .bfloat16, .float32]) == nil)
  }

  @Test(
    arguments: [
      ("query", [2, 2, 6, 8]), ("query", [2, 2, 5]), ("key", [2, 1, 7, 9]), ("key", [1, 1, 7, 8]),
      ("value", [2, 1, 8, 4]), ("value", [2, 2, 7, 4]), ("output", [2, 2, 5, 8]),
      ("logSumExp", [2, 2, 5, 1]),
    ] as [(String, [Int])]
  )
  func namesTheArgumentWhoseShapeDiffers(_ name: String, _ shape: [Int]) throws {
    let error =
      switch name {
      case "query": try failure(query: shape)
      case "key": try failure(key: shape)
      case "value": try failure(value: shape)
      case "output": try failure(output: shape)
      default: try failure(logSumExp: shape)
      }
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message.hasPrefix("\(name) has shape \(shape)") == true)
  }

  @Test(arguments: 0..<5)
  func refusesElementTypesThatAreNotFloats(_ argument: Int) throws {
    for type in [ElementType.int8, .int4, .float8] {
      var types = [ElementType](repeating: .float32, count: 5)
      types[argument] = type
      let error = try failure(types: types)
      #expect(error?.code == .unsupportedElementType)
      #expect(error?.message.contains(type.rawValue) == true)
    }
  }

  @Test func refusesOutputsThatShareMemory() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 4,
      keyValueLength: 4,
      headDimension: 4
    )
    let plan = try AttentionPlan(shape)
    let memory = try Tensor([Float](repeating: 0.5, count: 64), shape: [64])
    let base = unsafe memory.storage.assumingMemoryBound(to: Float.self)
    let input = unsafe TensorView(
      unsafeBase: base,
      elementType: .float32,
      shape: [1, 1, 4, 4],
      strides: [16, 16, 4, 1]
    )
    func failure(outputAt offset: Int, rowStride: Int) -> AttentionError? {
      let output = unsafe MutableTensorView(
        unsafeBase: base + offset,
        elementType: .float32,
        shape: [1, 1, 4, 4],
        strides: [16, 16, rowStride, 1]
      )
      do throws(AttentionError) {
        try plan.run(query: input, key: input, value: input, into: output)
      } catch { return error }
      return nil
    }
    // Element 15 of the inputs is element 0 of the output; next to each other is not sharing.
    #expect(failure(outputAt: 15, rowStride: 4)?.code == .overlappingOutput)
    #expect(failure(outputAt: 16, rowStride: 4) == nil)
    // Rows of the output in one place.
    #expect(failure(outputAt: 32, rowStride: 0)?.code == .overlappingOutput)
    #expect(failure(outputAt: 32, rowStride: 3)?.code == .overlappingOutput)
  }

  @Test func refusesStridedLastDimensions() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 4,
      keyValueLength: 4,
      headDimension: 4
    )
    let plan = try AttentionPlan(shape)
    let values = [Float](repeating: 1, count: 32)
    var output = try Tensor(.float32, shape: shape.outputShape)
    let error = #expect(throws: AttentionError.self) {
      try plan.run(
        query: TensorView(values.span, shape: [1, 1, 4, 4], strides: [32, 32, 8, 2]),
        key: TensorView(values.span, shape: [1, 1, 4, 4]),
        value: TensorView(values.span, shape: [1, 1, 4, 4]),
        into: output.mutableView
      )
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("query has stride 2") == true)
  }

  @Test(
    arguments: Precision.allCases.filter { $0 != .int4QueryKey },
    [Float.nan, .infinity, -.infinity, 1e30]
  )
  func namesTheElementThatIsNotFinite(_ precision: Precision, _ bad: Float) throws {
    let shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: 9,
      keyValueLength: 11,
      headDimension: 8,
      valueDimension: 8
    )
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      for (name, heads, rows) in [("query", 4, 9), ("key", 2, 11), ("value", 2, 11)] {
        var inputs = TestInputs(shape)
        let index = ((heads + 1) * rows + rows - 1) * 8 + 3  // batch 1, head 1, last token
        switch name {
        case "query": inputs.query[index] = bad
        case "key": inputs.key[index] = bad
        default: inputs.value[index] = bad
        }
        let plan = try AttentionPlan(shape, precision: precision, on: backend)
        let q = try Tensor(inputs.query, shape: shape.queryShape)
        let k = try Tensor(inputs.key, shape: shape.keyShape)
        let v = try Tensor(inputs.value, shape: shape.valueShape)
        var output = try Tensor(
          [Float](repeating: 42, count: shape.outputShape.reduce(1, *)),
          shape: shape.outputShape
        )
        let error = #expect(throws: AttentionError.self) {
          try plan.run(query: q.view, key: k.view, value: v.view, into: output.mutableView)
        }
        #expect(error?.code == (bad.isFinite ? .valueOutOfRange : .nonFiniteInput))
        let place = "\(name) at batch 1, head 1, token \(rows - 1), channel 3 is \(bad)"
        #expect(error?.message.hasPrefix(place) == true)
        #expect(output.copyFloats().allSatisfy { $0 == 42 })
      }
    }
  }

  @Test func refusesLogitsThatOverflow() throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 1,
      keyValueLength: 1,
      headDimension: 2
    )
    var inputs = TestInputs(shape)
    inputs.query = [0x1p50, 0]
    inputs.key = [0x1p50, 0]
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      let error = #expect(throws: AttentionError.self) {
        try inputs.attend(Precision.int8.recipe, on: backend)
      }
      #expect(error?.code == .valueOutOfRange)
    }
  }

  @Test(arguments: [Float.nan, .infinity])
  func refusesScalesThatAreNotFinite(_ scale: Float) throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(makeShape(), options: AttentionOptions(softmaxScale: scale))
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("softmaxScale is \(scale)") == true)
  }

  @Test(arguments: [Float.nan, .infinity, 0, -1])
  func refusesSoftcapsThatAreNotPositive(_ softcap: Float) throws {
    let error = #expect(throws: AttentionError.self) {
      try AttentionPlan(makeShape(), options: AttentionOptions(softcap: softcap))
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("softcap is \(softcap)") == true)
  }

  @Test func refusesNegativeWindows() throws {
    for mask in [AttentionMask.sliding(left: -1, right: 0), .sliding(left: nil, right: -2)] {
      let error = #expect(throws: AttentionError.self) {
        try AttentionPlan(makeShape(), options: AttentionOptions(mask: mask))
      }
      #expect(error?.code == .invalidArgument)
    }
  }

  @Test(arguments: [Precision.int8, .int8Paper, .bfloat16, .float32])
  func thePrepassCanBeTimedApart(precision: Precision) throws {
    let inputs = TestInputs(try makeShape())
    let shape = inputs.shape
    let query = try Tensor(inputs.query, shape: shape.queryShape)
    let key = try Tensor(inputs.key, shape: shape.keyShape)
    let value = try Tensor(inputs.value, shape: shape.valueShape)
    let backends: [(any AttentionBackend, Int)] = [(CPUBackend(), 1), (ReferenceBackend(), 0)]
    for (backend, expectedCalls) in backends {
      let plan = try AttentionPlan(shape, precision: precision, on: backend)
      var plain = try Tensor(.float32, shape: shape.outputShape)
      try plan.run(
        query: query.view,
        key: key.view,
        value: value.view,
        into: plain.mutableView
      )
      var timed = try Tensor(.float32, shape: shape.outputShape)
      var calls = 0
      try plan.run(
        query: query.view,
        key: key.view,
        value: value.view,
        into: timed.mutableView
      ) { calls += 1 }
      #expect(calls == expectedCalls)
      #expect(timed.copyFloats() == plain.copyFloats())
    }
  }

  @Test func emptyBatchesAndQueriesWriteNothing() throws {
    for (batch, length) in [(0, 4), (2, 0)] {
      let shape = try AttentionShape(
        batchCount: batch,
        queryHeadCount: 2,
        keyValueHeadCount: 1,
        queryLength: length,
        keyValueLength: 3,
        headDimension: 4
      )
      for precision in Precision.allCases where precision != .int4QueryKey {
        for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
          #expect(try TestInputs(shape).attend(precision.recipe, on: backend).output.isEmpty)
        }
      }
    }
  }

  @Test func theOneShotFunctionChecksItsOperands() throws {
    let q = try Tensor(.float32, shape: [3, 5, 8])
    let k = try Tensor(.float32, shape: [2, 5, 8])
    let error = #expect(throws: AttentionError.self) {
      let output = try attention(query: q.view, key: k.view, value: k.view)
      return output.count
    }
    #expect(error?.code == .shapeMismatch)
    #expect(error?.message.contains("3 query heads cannot share 2") == true)
    let flat = try Tensor(.float32, shape: [5, 8])
    let rank = #expect(throws: AttentionError.self) {
      let output = try attention(query: flat.view, key: k.view, value: k.view)
      return output.count
    }
    #expect(rank?.code == .invalidArgument)
    let wide = try Tensor(.float32, shape: [2, 5, 9])
    let dimension = #expect(throws: AttentionError.self) {
      let output = try attention(query: q.view, key: wide.view, value: k.view)
      return output.count
    }
    #expect(dimension?.code == .shapeMismatch)
  }
}
