// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention

/// A plan, and its summary as C text.
final class PlanObject: Sendable {
  let plan: AttentionPlan
  let summary: CText

  init(_ plan: AttentionPlan) {
    self.plan = plan
    summary = CText(plan.description)
  }
}

/// The tensors of a call, as far as they can be checked without its shape.
struct CallOperands {
  let query, key, value, output: AttentionOperands.Operand
  let logSumExp, mask, alibiSlopes, sinks: AttentionOperands.Operand?

  init(_ pointer: UnsafePointer<intfa_operands>?) throws(AttentionError) {
    let operands = unsafe try CStruct.read(pointer, "operands", intfa_operands())
    query = unsafe try CTensor.operand(operands.query, "query").batched("query", rank: 4)
    key = unsafe try CTensor.operand(operands.key, "key").batched("key", rank: 4)
    value = unsafe try CTensor.operand(operands.value, "value").batched("value", rank: 4)
    output = unsafe try CTensor.operand(operands.output, "output").batched("output", rank: 4)
    logSumExp = unsafe try CTensor.optionalOperand(operands.log_sum_exp, "log_sum_exp")?
      .batched("log_sum_exp", rank: 3)
    mask = unsafe try CTensor.optionalOperand(operands.mask, "mask")
    alibiSlopes = unsafe try CTensor.optionalOperand(operands.alibi_slopes, "alibi_slopes")
    sinks = unsafe try CTensor.optionalOperand(operands.sinks, "sinks")
  }

  func run(_ plan: AttentionPlan) throws(AttentionError) {
    if let logSumExp {
      try plan.run(
        query: query.view,
        key: key.view,
        value: value.view,
        mask: mask?.view,
        alibiSlopes: alibiSlopes?.view,
        sinks: sinks?.view,
        into: output.mutableView,
        logSumExp: logSumExp.mutableView
      )
    } else {
      try plan.run(
        query: query.view,
        key: key.view,
        value: value.view,
        mask: mask?.view,
        alibiSlopes: alibiSlopes?.view,
        sinks: sinks?.view,
        into: output.mutableView
      )
    }
  }
}

private func makePlan(
  _ shape: AttentionShape,
  _ precision: UnsafePointer<CChar>?,
  _ options: UnsafePointer<intfa_options>?,
  _ backend: UnsafePointer<intfa_backend>?
) throws(AttentionError) -> AttentionPlan {
  try AttentionPlan(
    shape,
    precision: unsafe try Precision(named: precision),
    options: unsafe try AttentionOptions(options, shape: shape),
    on: unsafe try makeBackend(backend)
  )
}

@c @implementation
public func intfa_attention(
  _ operands: UnsafePointer<intfa_operands>!,
  _ precision: UnsafePointer<CChar>!,
  _ options: UnsafePointer<intfa_options>!,
  _ backend: UnsafePointer<intfa_backend>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let operands = unsafe try CallOperands(operands)
    let shape = try AttentionShape(
      query: operands.query.view,
      key: operands.key.view,
      value: operands.value.view
    )
    try operands.run(unsafe try makePlan(shape, precision, options, backend))
  }
}

@c @implementation
public func intfa_plan_create(
  _ shape: UnsafePointer<intfa_shape>!,
  _ precision: UnsafePointer<CChar>!,
  _ options: UnsafePointer<intfa_options>!,
  _ backend: UnsafePointer<intfa_backend>!,
  _ plan: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(plan, "plan")
    let sizes = unsafe try CStruct.read(shape, "shape", intfa_shape())
    let shape = try AttentionShape(
      batchCount: Int(sizes.batch_count),
      queryHeadCount: Int(sizes.query_head_count),
      keyValueHeadCount: Int(sizes.key_value_head_count),
      queryLength: Int(sizes.query_length),
      keyValueLength: Int(sizes.key_value_length),
      headDimension: Int(sizes.head_dimension),
      valueDimension: Int(sizes.value_dimension)
    )
    let plan = unsafe try makePlan(shape, precision, options, backend)
    unsafe target.pointee = Handle.make(PlanObject(plan))
  }
}

@c @implementation
public func intfa_plan_summary(
  _ plan: OpaquePointer!,
  _ summary: UnsafeMutablePointer<UnsafePointer<CChar>?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try Handle.object(plan, "plan", as: PlanObject.self)
    let target = unsafe try require(summary, "summary")
    unsafe target.pointee = object.summary.characters
  }
}

@c @implementation
public func intfa_plan_run(
  _ plan: OpaquePointer!,
  _ operands: UnsafePointer<intfa_operands>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try Handle.object(plan, "plan", as: PlanObject.self)
    unsafe try CallOperands(operands).run(object.plan)
  }
}

@c @implementation
public func intfa_plan_destroy(_ plan: OpaquePointer!) {
  unsafe Handle.destroy(plan, as: PlanObject.self)
}
