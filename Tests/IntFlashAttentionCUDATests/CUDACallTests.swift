import AttentionTestSupport
import Foundation
import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// What a call does besides arithmetic on ordinary input.
@Suite(.enabled(if: TestDevice.exists), .serialized)
struct CUDACallTests {
  private func shape(
    batch: Int = 1,
    heads: Int = 2,
    queries: Int,
    keys: Int,
    dimension: Int = 64
  ) throws -> AttentionShape {
    try AttentionShape(
      batchCount: batch,
      queryHeadCount: heads,
      keyValueHeadCount: 1,
      queryLength: queries,
      keyValueLength: keys,
      headDimension: dimension
    )
  }

  /// One query against many keys: the parts of the keys are computed apart and merged.
  @Test(arguments: [Precision.int8, .bfloat16], [InputKind.normal, .rising, .falling])
  func splitsAreMerged(_ precision: Precision, _ kind: InputKind) throws {
    let shape = try shape(heads: 1, queries: 1, keys: 2100)
    let inputs = TestInputs(shape, kind, seed: 5)
    let plan = try AttentionPlan(shape, precision: precision, on: CUDABackend())
    #expect(plan.summary.kernels.contains { $0.hasPrefix("merge") })
    let recipe = try TestDevice.recipe(precision, shape)
    for mask in [AttentionMask.causal, .sliding(left: 1700, right: 0)] {
      let options = AttentionOptions(mask: mask)
      let reference = try inputs.attend(recipe, options, on: ReferenceBackend())
      let result = try inputs.attend(precision.recipe, options, on: CUDABackend())
      expectSame(result, reference, precision, inputs, "\(mask)")
    }
  }

  /// Against exact attention, not against the same recipe.
  @Test(arguments: [Precision.int8, .bfloat16])
  func normalDataKeepTheirBound(_ precision: Precision) throws {
    let inputs = TestInputs(try shape(queries: 70, keys: 300), seed: 3)
    let exact = try inputs.exact()
    let result = try inputs.attend(precision.recipe, on: CUDABackend())
    let report = AccuracyReport(result.output, against: exact.output)
    #expect(report.relativeL1 <= precision.gate.normal)
  }

  /// Activations of a language model; all of their tokens on a real GPU.
  @Test(arguments: [0, 7, 15, 29], [Precision.int8, .bfloat16, .float16])
  func activationsKeepTheirBound(_ layer: Int, _ precision: Precision) throws {
    let name = "activations_l\(layer < 10 ? "0" : "")\(layer).safetensors"
    let folder = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    let file = try VectorFile(
      path: folder.appending(path: "IntFlashAttentionTests/Vectors/\(name)").path(),
      tokens: TestDevice.isSimulated ? 130 : nil
    )
    let exact = try file.inputs.exact(file.options)
    let result = try file.inputs.attend(precision.recipe, file.options, on: CUDABackend())
    let report = AccuracyReport(result.output, against: exact.output)
    #expect(report.relativeL1 <= precision.gate.worst)
    #expect(report.cosine >= precision.gate.cosine)
  }

  @Test func constantValuesAreExact() throws {
    var inputs = TestInputs(try shape(queries: 70, keys: 150), .outlierChannel)
    inputs.value = inputs.value.map { _ in 0.75 }
    let result = try inputs.attend(Precision.int8.recipe, on: CUDABackend())
    let expected = [Float](repeating: 0.75, count: result.output.count)
    let report = AccuracyReport(result.output, against: expected)
    #expect(report.relativeL1 <= Precision.int8.constantBound)
  }

  @Test func scaleZeroAveragesTheValues() throws {
    let inputs = TestInputs(try shape(queries: 5, keys: 130), .outlierChannel)
    let options = AttentionOptions(softmaxScale: 0)
    let exact = try inputs.exact(options)
    let result = try inputs.attend(Precision.int8.recipe, options, on: CUDABackend())
    let report = AccuracyReport(result.output, against: exact.output)
    #expect(report.relativeL1 <= Precision.int8.gate.worst)
  }

  @Test func rowsThatSeeNoKeyGiveZeros() throws {
    let shape = try shape(queries: 90, keys: 20)
    let inputs = TestInputs(shape)
    for precision in [Precision.int8, .bfloat16] {
      let result = try inputs.attend(
        precision.recipe,
        AttentionOptions(mask: .causal),
        on: CUDABackend()
      )
      // The last query stands at the last key, so the first 70 see none.
      let zeros = result.output.prefix(70 * shape.valueDimension)
      #expect(zeros.allSatisfy { $0 == 0 })
      #expect(result.logSumExp.prefix(70).allSatisfy { $0 == -.infinity })
      #expect(result.logSumExp[70].isFinite)
    }
  }

  @Test func noKeysGiveZeros() throws {
    let inputs = TestInputs(try shape(queries: 3, keys: 0))
    let result = try inputs.attend(Precision.int8.recipe, on: CUDABackend())
    #expect(result.output.allSatisfy { $0 == 0 })
    #expect(result.logSumExp.allSatisfy { $0 == -.infinity })
  }

  /// Also where the loop reads operands as they lie, without a copy.
  @Test(arguments: [ElementType.float16, .bfloat16], [Precision.int8, .bfloat16, .float16])
  func inputTypesThatHoldTheSameNumbersGiveTheSameBits(
    _ type: ElementType,
    _ precision: Precision
  ) throws {
    var inputs = TestInputs(try shape(queries: 66, keys: 100), .sink, seed: 3)
    inputs.query = inputs.query.map { BFloat16($0).float }.map(Half.rounded)
    inputs.key = inputs.key.map { BFloat16($0).float }.map(Half.rounded)
    inputs.value = inputs.value.map { BFloat16($0).float }.map(Half.rounded)
    let plan = try AttentionPlan(inputs.shape, precision: precision, on: CUDABackend())
    let float = try inputs.run(plan)
    let result = try inputs.run(plan, inputType: type)
    #expect(result.output == float.output)
    #expect(result.logSumExp == float.logSumExp)
  }

  /// [batch, tokens, heads, dimension] in, float16 out, two batches.
  @Test func layoutsAndOutputTypes() throws {
    let shape = try shape(batch: 2, queries: 70, keys: 90)
    let inputs = TestInputs(shape, .outlierChannel)
    let plan = try AttentionPlan(shape, on: CUDABackend())
    let expected = try inputs.run(plan)
    func swapped(_ values: [Float], _ shape: [Int]) throws -> Tensor {
      let dense = try Tensor(values, shape: shape)
      let view = try dense.view.permuted([0, 2, 1, 3])
      return try Tensor(view.copyFloats(), shape: view.shape)
    }
    let query = try swapped(inputs.query, shape.queryShape)
    let key = try swapped(inputs.key, shape.keyShape)
    let value = try swapped(inputs.value, shape.valueShape)
    var output = try Tensor(.float16, shape: shape.outputShape)
    try plan.run(
      query: query.view.operand(.batchTokensHeads),
      key: key.view.operand(.batchTokensHeads),
      value: value.view.operand(.batchTokensHeads),
      into: output.mutableView
    )
    #expect(output.copyFloats() == expected.output.map { Half.rounded($0) })
  }

  @Test(arguments: [Precision.int8, .bfloat16])
  func namesTheElementThatIsNotFinite(_ precision: Precision) throws {
    let shape = try shape(batch: 2, queries: 10, keys: 70)
    var inputs = TestInputs(shape)
    inputs.key[70 * 64 + 65 * 64 + 3] = .nan
    inputs.value[5] = .infinity
    let plan = try AttentionPlan(shape, precision: precision, on: CUDABackend())
    let query = try Tensor(inputs.query, shape: shape.queryShape)
    let key = try Tensor(inputs.key, shape: shape.keyShape)
    let value = try Tensor(inputs.value, shape: shape.valueShape)
    var output = try Tensor(
      [Float](repeating: 7, count: shape.outputShape.reduce(1, *)),
      shape: shape.outputShape
    )
    var error: AttentionError?
    do throws(AttentionError) {
      try plan.run(query: query.view, key: key.view, value: value.view, into: output.mutableView)
    } catch let caught {
      error = caught
    }
    #expect(error?.code == .nonFiniteInput)
    #expect(error?.message.hasPrefix("key at batch 1, head 0, token 65, channel 3 is nan") == true)
    #expect(output.copyFloats().allSatisfy { $0 == 7 })
    // The plan is as good as before.
    let good = try TestInputs(shape).run(plan)
    #expect(good.output.allSatisfy { $0.isFinite })
  }

  @Test func tensorsStayOnTheDevice() throws {
    let shape = try shape(queries: 70, keys: 90)
    let inputs = TestInputs(shape, .outlierChannel)
    let device = try #require(TestDevice.device)
    let descriptor = try AttentionDescriptor(
      shape: shape,
      recipe: Precision.int8.recipe,
      options: AttentionOptions()
    )
    let kernel = try CUDABackend().makeCUDAKernel(for: descriptor)
    let stream = try CUDAStream(on: device)
    func upload(_ values: [Float], _ shape: [Int]) throws -> DeviceTensor {
      let host = try Tensor(values, shape: shape)
      let tensor = try DeviceTensor(.float32, shape: shape, on: device)
      try tensor.copy(from: host, on: stream)
      return tensor
    }
    let query = try upload(inputs.query, shape.queryShape)
    let key = try upload(inputs.key, shape.keyShape)
    let value = try upload(inputs.value, shape.valueShape)
    let output = try DeviceTensor(.float32, shape: shape.outputShape, on: device)
    let sums = try DeviceTensor(.float32, shape: shape.logSumExpShape, on: device)
    for _ in 0..<2 {
      try kernel.enqueue(
        query: query,
        key: key,
        value: value,
        into: output,
        logSumExp: sums,
        on: stream
      )
    }
    try kernel.check(on: stream)
    var result = try Tensor(.float32, shape: shape.outputShape)
    try output.copy(to: &result, on: stream)
    var resultSums = try Tensor(.float32, shape: shape.logSumExpShape)
    try sums.copy(to: &resultSums, on: stream)
    let expected = try inputs.attend(Precision.int8.recipe, on: CUDABackend())
    #expect(result.copyFloats() == expected.output)
    #expect(resultSums.copyFloats() == expected.logSumExp)

    var broken = inputs
    broken.query[0] = .infinity
    let bad = try upload(broken.query, shape.queryShape)
    try kernel.enqueue(query: bad, key: key, value: value, into: output, on: stream)
    let error = #expect(throws: AttentionError.self) { try kernel.check(on: stream) }
    #expect(error?.code == .nonFiniteInput)
    #expect(error?.message.hasPrefix("query at batch 0, head 0, token 0") == true)
    do throws(AttentionError) {
      try kernel.enqueue(query: output, key: key, value: value, into: output, on: stream)
      Issue.record("an output that is the query was taken")
    } catch {
      #expect(error.code == .overlappingOutput)
      #expect(error.message == "output and query overlap in device memory")
    }
    let shared = unsafe try DeviceTensor(
      unsafeAddress: output.address,
      .float32,
      shape: shape.logSumExpShape
    )
    let flat = unsafe try DeviceTensor(
      unsafeAddress: output.address,
      .float32,
      shape: shape.outputShape,
      strides: [0, 0, 0, 1]
    )
    do throws(AttentionError) {
      try kernel.enqueue(
        query: query,
        key: key,
        value: value,
        into: output,
        logSumExp: shared,
        on: stream
      )
      Issue.record("a log-sum-exp inside the output was taken")
    } catch {
      #expect(error.code == .overlappingOutput)
      #expect(error.message == "logSumExp and output overlap in device memory")
    }
    do throws(AttentionError) {
      try kernel.enqueue(query: query, key: key, value: value, into: flat, on: stream)
      Issue.record("an output whose rows are one was taken")
    } catch {
      #expect(error.code == .overlappingOutput)
    }
    do throws(AttentionError) {
      try kernel.enqueue(query: key, key: key, value: value, into: output, on: stream)
      Issue.record("a query of the wrong shape was taken")
    } catch {
      #expect(error.code == .shapeMismatch)
    }
  }
}
